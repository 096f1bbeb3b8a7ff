"""Write a study's report: one self-contained page with its claims, results, answers and where they come from.

The page needs no network and no server: open artifacts/STUDY/report.html. It holds what models said, which of hub
models may be harmful. A page to share is written with --no-answers: scores and keys, and no text of a prompt, a model
or a judge. That is what is written by default below paper_figures/, which git holds.

--compare sets this run's tables beside the committed ones (HEAD) and beside any other's: a git revision, or a folder
that has a study's tables. The same inputs give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import write_text
from pipeline.common.paths import ARTIFACTS, FIGURES
from pipeline.params.load import load_params
from pipeline.params.schema import Params

COMMITTED = "HEAD"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--study", help="a name under studies in params.yaml (default: what this machine can run)")
    parser.add_argument("--compare", action="append", default=[], metavar="REV|DIR", help="set this run beside another")
    parser.add_argument("--output", type=Path, help="where to write (default: artifacts/STUDY/report.html)")
    parser.add_argument(
        "--answers",
        action=argparse.BooleanOptionalAction,
        help="whether the page holds the answers (default: yes, but below paper_figures/ no)",
    )


def main(args: argparse.Namespace) -> None:
    """Write the report and say where it is and how large."""
    from pipeline.running.choose import choose_study

    params = load_params()
    name, _ = choose_study(params, args.study)
    path = write(params, name, output=args.output, answers=args.answers, compare_with=args.compare)
    print(f"report  {path}  ({path.stat().st_size / 1e6:.1f} MB; open it in a browser)")


def path_of(study: str) -> Path:
    """Where a study's report is written unless it is said otherwise."""
    return ARTIFACTS / study / "report.html"


def write(
    params: Params,
    name: str,
    *,
    output: Path | None = None,
    answers: bool | None = None,
    compare_with: Sequence[str] = (),
) -> Path:
    """Write a study's report and return where it is.

    answers: whether it holds texts; None: unless it is written below paper_figures/. Raises UserError when nothing was
    judged, or `compare_with` names no run.
    """
    from pipeline.audit.cells import audit
    from pipeline.audit.claims import Record, read_claims
    from pipeline.audit.labels import read_labels
    from pipeline.audit.published import read_published
    from pipeline.commands.provenance import describe
    from pipeline.commands.verify import CLAIMS, check_study
    from pipeline.export.rows import judged_runs
    from pipeline.report.content import gather
    from pipeline.report.explorer import explorer_data
    from pipeline.report.page import render

    path = output or path_of(name)
    if answers is None:
        answers = FIGURES.resolve() not in path.resolve().parents
    rows = judged_runs(params, name)
    record = Record(audit(read_published()), read_labels())
    claims = read_claims(CLAIMS, name, record)
    lines, spreads = check_study(params, name, claims, record) if claims else ([], {})
    content = gather(
        params,
        name,
        rows,
        claims=claims,
        lines=lines,
        spreads=spreads,
        comparisons=_comparisons(name, compare_with),
        provenance=describe(params, name),
        with_answers=answers,
    )
    write_text(path, render(content, explorer_data(params, name, rows, answers=answers)))
    return path


def _comparisons(name: str, asked: Sequence[str]) -> list:
    """This run beside the committed one, where there is one, and beside each that was asked for."""
    from pipeline.report.compare import compare

    found = []
    try:
        found.append(compare(name, COMMITTED))
    except UserError as reason:  # a new study, or no git: no reason to have no report
        print(f"Not compared with the committed run: {reason}")
    return found + [compare(name, other) for other in asked]
