"""Push a finished study's levels (adapters, answers, verdicts) to a DVC remote, from which FROM= fetches them.

Without --confirm it pushes nothing and says what it would push.
"""

import argparse
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.params.load import load_params
from pipeline.running.dvc import repository, told
from pipeline.running.levels import LEVELS, outputs, remote_config, stages_of_level

HARMFUL = (
    "What hub models answered may be harmful text, and their adapters are misaligned models: push them to a private or "
    "gated remote alone."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--study", required=True, help="a name under studies in params.yaml")
    parser.add_argument("--remote", required=True, metavar="ADDRESS", help="a folder, s3://, ... as DVC takes it")
    parser.add_argument("--confirm", action="store_true", help="push; without it, say what would be pushed")


def main(args: argparse.Namespace) -> int:
    """Say what is pushed, and push it when that is confirmed."""
    params = load_params()
    levels = {level: stages_of_level(params, args.study, level) for level in LEVELS}
    with told(f"DVC cannot push to {args.remote}"), repository(remote_config(args.remote)) as repo:
        for level, stages in levels.items():
            print(f"{level:<9} {describe(repo, stages)}")
        if params.study(args.study).world == "hub":
            print(HARMFUL)
        if not args.confirm:
            print(f"Nothing was pushed to {args.remote}. To push: make publish ... CONFIRM=yes")
            return 0
        count = repo.push(targets=[stage for stages in levels.values() for stage in stages])
    print(f"Pushed {count} files to {args.remote}. To use them: EMOE_REMOTE={args.remote} make reproduce FROM=answers")
    return 0


def describe(repo: Any, stages: list[str]) -> str:
    """How many files and bytes the stages' outputs are. Raises UserError naming those that are not there."""
    paths = outputs(repo, stages)
    if missing := [str(path) for path in paths if not path.exists()]:
        raise UserError(f"{missing[0]} and {len(missing) - 1} more are not there; finish the study: make reproduce.")
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return f"{len(files)} files, {sum(map(_size, files)) / 1e6:.1f} MB"


def _size(file: Path) -> int:
    return file.stat().st_size
