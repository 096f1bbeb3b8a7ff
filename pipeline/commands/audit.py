"""Recompute the authors' published tables from their own suite means, and say what follows.

Needs no GPU, key, network or installed package, and takes less than a second. Reads `published/`; writes
`audit.md` (the report), `audit.csv` and `audit.tex` (every cell) and prints the summary.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.common.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    from pipeline.audit.published import FOLDER

    parser.add_argument("--published", type=Path, default=FOLDER, help="folder of the published numbers")
    parser.add_argument(
        "--out", type=Path, default=Path("paper_figures/audit"), help="folder for audit.md, .csv and .tex"
    )


def main(args: argparse.Namespace) -> int:
    """Run the audit; exit status 0 whatever it finds, as a discrepancy is a finding and no failure."""
    from dataclasses import astuple, fields

    from pipeline.audit.cells import Cell, audit
    from pipeline.audit.published import read_published
    from pipeline.audit.report import report, summary
    from pipeline.results.tables import format_cell, write_rows

    result = audit(read_published(args.published))
    columns = [field.name for field in fields(Cell)]
    rows = [astuple(cell) for cell in result.cells]
    # With the decimals that each number was printed with: two for percentages, six in the frame.
    shown = [
        [format_cell(value, decimals) for value in row] for row, decimals in zip(rows, result.decimals, strict=True)
    ]
    paths = write_rows(
        columns,
        rows,
        args.out / "audit",
        caption="Every published cell, recomputed from the published suite means and counts",
        label="published",
        shown=(columns, shown),
    )
    markdown = next(path for path in paths if path.suffix == ".md")
    write_text(markdown, f"{report(result)}\n{markdown.read_text(encoding='utf-8')}")
    print(summary(result))
    print(f"Report: {markdown}; every cell: {markdown.with_suffix('.csv')}, {markdown.with_suffix('.tex')}")
    return 0
