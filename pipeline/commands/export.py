"""Write a study's answers and verdicts for other tools.

--to inspect   Inspect .eval logs, one a run; `inspect view --log-dir DIR` opens them (needs the extra `export`)
--to parquet | csv | jsonl
               one table, a row an answer and judge; csv is safe to open in a spreadsheet, the others are exact
--to hf        adapters with model cards and the data set with its card, for the Hugging Face hub, private and gated;
               without HF_TOKEN, or with --dry-run, it says exactly what would be uploaded and stops
--to bundle    one RO-Crate archive, ready for Zenodo

Answers of hub models may be harmful: look at what you write, and do not publish it unseen.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common.paths import ARTIFACTS
from pipeline.export.rows import Judged, judged_runs
from pipeline.params.load import load_params
from pipeline.params.schema import Params

FORMATS = ("inspect", "parquet", "csv", "jsonl", "hf", "bundle")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--study", help="a name under studies in params.yaml (default: what this machine can run)")
    parser.add_argument("--to", required=True, choices=FORMATS, help="what to write")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where (default: artifacts/STUDY/export/FORMAT)")
    parser.add_argument("--owner", help="hf: the account or organisation (default: the token's)")
    parser.add_argument("--dry-run", action="store_true", help="hf: upload nothing")
    parser.add_argument("--doi", help="bundle: the DOI that was reserved for it")


def main(args: argparse.Namespace) -> None:
    """Write what was asked for and say where it is."""
    from pipeline.commands.provenance import describe
    from pipeline.running.choose import choose_study

    params = load_params()
    name, _ = choose_study(params, args.study)
    folder = args.output or ARTIFACTS / name / "export" / args.to
    rows = judged_runs(params, name)
    provenance = describe(params, name)
    if args.to == "inspect":
        from pipeline.export.inspect_log import write_inspect

        paths = write_inspect(params, name, rows, provenance, folder)
        print(f"{len(paths)} logs in {folder}: inspect view --log-dir {folder}")
    elif args.to == "bundle":
        from pipeline.export.bundle import write_bundle

        path = write_bundle(name, params.study(name), provenance, folder / f"emoe-{name}.zip", args.doi)
        print(f"{path}  ({path.stat().st_size / 1e6:.2f} MB)")
    elif args.to == "hf":
        _to_hub(args, params, name, rows, provenance, folder)
    else:
        from pipeline.export.tabular import write_tabular

        path = folder / f"{name}.{args.to}"
        write_tabular(params, rows, args.to, path)
        print(f"{path}  ({path.stat().st_size / 1e6:.2f} MB)")


def _to_hub(
    args: argparse.Namespace,
    params: Params,
    name: str,
    rows: Mapping[str, list[Judged]],
    provenance: Mapping[str, Any],
    folder: Path,
) -> None:
    from pipeline.export.hub import lay_out, listing, upload

    repositories = lay_out(params, name, rows, provenance, folder)
    token = os.environ.get("HF_TOKEN")
    print(listing(repositories, args.owner or "YOU"))
    if args.dry_run or not token:
        why = "--dry-run was given" if args.dry_run else "HF_TOKEN is not set"
        print(f"Nothing was uploaded, because {why}. What would be lies in {folder}.")
        return
    for address in upload(repositories, args.owner, token):
        print(f"uploaded  {address}")
