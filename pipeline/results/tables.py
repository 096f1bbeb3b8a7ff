"""One table as csv, Markdown and LaTeX (booktabs): equal bytes for equal rows, and no cell that acts.

Python alone: the audit writes its tables on a machine where nothing is installed, so pandas and tabulate cannot.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.files import write_text
from pipeline.results.inert import inert

if TYPE_CHECKING:
    import pandas as pd

_ROWS_A_PAGE = 50
MISSING = "\N{EN DASH}"


def write_table(
    frame: pd.DataFrame,
    stem: Path,
    *,
    caption: str,
    label: str,
    headers: Mapping[str, str] | None = None,
    decimals: int = 2,
    shown: pd.DataFrame | None = None,
) -> list[Path]:
    """Write `frame` to `stem`.csv, .md and .tex; return the three paths. As `write_rows`."""
    return write_rows(
        *_plain(frame),
        stem,
        caption=caption,
        label=label,
        headers=headers,
        decimals=decimals,
        shown=None if shown is None else _plain(shown),
    )


def write_rows(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    stem: Path,
    *,
    caption: str,
    label: str,
    headers: Mapping[str, str] | None = None,
    decimals: int = 2,
    shown: tuple[Sequence[str], Sequence[Sequence[Any]]] | None = None,
) -> list[Path]:
    """Write `rows` (None = empty) to `stem`.csv, .md and .tex, without pandas; return the three paths.

    `label` says what world the numbers are from ("published", "toy", ...): it stands in the caption
    and in the LaTeX label. The csv has `columns` and full precision; the other two have `headers`
    (column -> heading; the column's name if not given) and floats to `decimals`. Empty cells show as a
    dash. `shown` (columns, rows) stands in for the table in those two, where cells need a format or a
    shape of their own. Over 50 rows the LaTeX is a longtable.
    """
    seen_columns, seen_rows = shown or (columns, rows)
    names = [(headers or {}).get(column, column) for column in seen_columns]
    cells = [[format_cell(value, decimals) for value in row] for row in seen_rows]
    numeric = [
        _is_numeric(columns, rows, column) if column in columns else _is_numeric(seen_columns, seen_rows, column)
        for column in seen_columns
    ]
    title = f"{caption} [{label}]"
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("csv", "md", "tex")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([inert(column, "csv") for column in columns])
    writer.writerows([[inert(it, "csv") if isinstance(it, str) else it for it in row] for row in rows])
    write_text(paths[0], text.getvalue())
    write_text(
        paths[1],
        f"{inert(caption, 'markdown')} [{inert(label, 'markdown')}]\n\n{markdown_table(names, cells, numeric)}",
    )
    write_text(paths[2], _latex_table(names, cells, numeric, title, f"tab:{label}:{stem.name}"))
    return paths


def _plain(frame: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of Python values, None where the frame has none."""
    values = frame.astype(object)
    return [str(column) for column in frame.columns], values.where(frame.notna(), None).to_numpy().tolist()


def _is_numeric(columns: Sequence[str], rows: Sequence[Sequence[Any]], column: str) -> bool:
    place = list(columns).index(column)
    values = [row[place] for row in rows if row[place] is not None]
    return bool(values) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def format_cell(value: Any, decimals: int) -> str:
    """One cell as a reader sees it: floats to `decimals`, integers whole, None or NaN as a dash."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        text = f"{value:.{decimals}f}"
        return text.removeprefix("-") if float(text) == 0 else text
    return str(value)


def markdown_table(names: list[str], cells: list[list[str]], numeric: list[bool]) -> str:
    """A Markdown pipe table, padded so that it also reads as plain text; its cells are inert."""
    escaped = [[inert(cell, "markdown") for cell in row] for row in [names, *cells]]
    widths = [max(3, *(len(row[column]) for row in escaped)) for column in range(len(names))]

    def line(row: list[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        return f"| {' | '.join(padded)} |\n"

    rule = ("-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True))
    return line(escaped[0]) + f"| {' | '.join(rule)} |\n" + "".join(map(line, escaped[1:]))


def _latex(text: str) -> str:
    return inert(text, "latex")


def _latex_table(names: list[str], cells: list[list[str]], numeric: list[bool], title: str, label: str) -> str:
    columns = "".join("r" if right else "l" for right in numeric)
    body = [" & ".join(map(_latex, row)) + r" \\" for row in cells]
    head = " & ".join(map(_latex, names)) + r" \\"
    if len(cells) > _ROWS_A_PAGE:
        return _long_latex_table(columns, head, body, title, label)
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}[tb]",
        r"\centering\small",
        rf"\caption{{{_latex(title)}}}",
        rf"\label{{{_label(label)}}}",
        rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9:_.+-]", "-", text)


def _long_latex_table(columns: str, head: str, body: list[str], title: str, label: str) -> str:
    lines = [
        "% needs \\usepackage{booktabs,longtable}",
        r"\begingroup\scriptsize",
        rf"\begin{{longtable}}{{@{{}}{columns}@{{}}}}",
        rf"\caption{{{_latex(title)}}}\label{{{_label(label)}}}\\",
        r"\toprule",
        head,
        r"\midrule\endfirsthead",
        r"\toprule",
        head,
        r"\midrule\endhead",
        r"\bottomrule\endfoot",
        *body,
        r"\end{longtable}",
        r"\endgroup",
    ]
    return "\n".join(lines) + "\n"
