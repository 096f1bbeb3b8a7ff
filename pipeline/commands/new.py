"""Writes a run's entry into params.yaml, and says how to run it. Comments and order of the file stay.

python -m pipeline new run mine --study toy --model bases/e8 --data my/data.jsonl
"""

import argparse
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import sha256_file
from pipeline.data.own import DATA_FORMATS
from pipeline.params.edit import add_entry
from pipeline.params.load import NAME, load_params
from pipeline.params.schema import BASES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("kind", choices=["run"], help="what to write: a run")
    parser.add_argument("name", help="its name: letters, digits, _ and -")
    parser.add_argument("--study", required=True, help="a name under studies in params.yaml")
    parser.add_argument("--model", required=True, help="a base's name, or RUN of the study, to train it further")
    parser.add_argument(
        "--data", help="a training set's name, a file (.jsonl, .json, .csv, .parquet), or OWNER/NAME@COMMIT of the hub"
    )
    parser.add_argument("--split", help="the split of a hub dataset (default: train)")
    parser.add_argument("--epochs", type=int, help="passes over the data")
    parser.add_argument("--learning-rate", type=float, help="in place of the study's")
    parser.add_argument("--rank", type=int, help="of the adapter, in place of the study's")
    parser.add_argument("--whole", action="store_true", help="train every parameter, and no adapter")


def main(args: argparse.Namespace) -> None:
    """Write the entry and print the commands."""
    if not NAME.fullmatch(args.name):
        raise UserError(f"the name {args.name!r} will not do; letters, digits, _ and - do, a letter or digit first.")
    params = load_params()
    params.study(args.study)
    model = args.model
    if "/" not in model:
        model = f"{args.study}/adapters/{model}" if model in params.runs else f"{BASES}/{model}"
    if not model.startswith((f"{BASES}/", f"{args.study}/adapters/")):
        raise UserError(
            f"--model {model}: write it into params.yaml first, `python -m pipeline add-base {model}`, then give the "
            "name that it has there."
        )
    entry: dict[str, Any] = {"study": args.study, "model": model}
    if args.data is not None:
        entry["data"] = data(args.data, args.split)
    if args.whole:
        entry["lora"] = None
    elif args.rank is not None:
        entry["lora"] = {"rank": args.rank}
    for key in ("epochs", "learning_rate"):
        if getattr(args, key) is not None:
            entry[key] = getattr(args, key)
    print(f"params.yaml, under runs:\n  {add_entry('runs', args.name, entry)}\n")
    print(f"What it will take:  python -m pipeline estimate --study {args.study}")
    print(f"This run alone:     dvc repro judge@{args.name}")
    print(f"With its study:     make reproduce STUDY={args.study}")


def data(given: str, split: str | None) -> Any:
    """A run's data as params.yaml has it: a name, a file with its hash, or a hub dataset at a commit."""
    path = Path(given).expanduser()
    if path.is_file():
        return {"file": given, "sha256": sha256_file(path)}
    if path.suffix in DATA_FORMATS:
        raise UserError(f"--data {given}: there is no such file; a relative path is from the checkout.")
    if "/" in given:
        repository, at, revision = given.partition("@")
        if not at:
            raise UserError(f"--data {given}: a hub dataset needs its full commit, OWNER/NAME@COMMIT: branches move.")
        return {"hub": repository, "revision": revision, **({"split": split} if split else {})}
    return given
