"""The tables every study has, each from one frame: headline, runs, and runs by suites."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.errors import UserError
from pipeline.results.tables import write_table

if TYPE_CHECKING:
    import pandas as pd

_HEADERS = {
    "run": "run",
    "model": "model",
    "mean_alignment": "mean alignment",
    "mean_coherence": "mean coherence",
    "refusal_percent": "refusals %",
    "misalignment_percent": "misaligned %",
    "misaligned": "misaligned",
    "coherent": "of coherent",
    "rows": "rows",
    "seeds": "seeds",
}


def headline_table(
    frame: pd.DataFrame, stem: Path, *, label: str, caption: str, headers: Mapping[str, str] | None = None
) -> list[Path]:
    """Mean alignment and refusals (%) of each model, base beside fine-tuned.

    Columns: `model`, `role` ("base" or "fine-tuned", one row each a model), `mean_alignment`,
    `refusal_percent`. `headers` renames columns of the Markdown and the LaTeX. Raises UserError when a
    model has another number of rows of a role.
    """
    doubled = frame[frame.duplicated(["model", "role"])]
    if not doubled.empty:
        row = doubled.iloc[0]
        raise UserError(f"the headline table has more than one {row['role']} row for {row['model']}.")
    values = ["mean_alignment", "refusal_percent"]
    wide = frame.pivot(index="model", columns="role", values=values).reindex(frame["model"].unique())
    order = [(value, role) for value in values for role in ("base", "fine-tuned")]
    table = wide.reindex(columns=order)
    table.columns = [f"{value}_{role.replace('-', '_')}" for value, role in order]
    names = {**_HEADERS, **(headers or {})}
    shown = {f"{value}_{role.replace('-', '_')}": f"{names[value]}, {role}" for value, role in order}
    return write_table(table.reset_index(), stem, caption=caption, label=label, headers=shown)


def run_table(
    frame: pd.DataFrame, stem: Path, *, label: str, caption: str, headers: Mapping[str, str] | None = None
) -> list[Path]:
    """One row a run, in the order of the frame, with the metrics it has of _HEADERS.

    Needs `run`; takes, of `mean_alignment`, `mean_coherence`, `refusal_percent`, `misalignment_percent`,
    `misaligned`, `coherent`, `rows`, `seeds` and `misalignment_percent_low`/`_high`, those present.
    `headers` renames columns of the Markdown and the LaTeX.
    """
    names = {
        **_HEADERS,
        "misalignment_percent_low": "low",
        "misalignment_percent_high": "high",
        **(headers or {}),
    }
    columns = [name for name in names if name in frame.columns]
    return write_table(frame[columns], stem, caption=caption, label=label, headers=names)


def run_by_suite_table(frame: pd.DataFrame, stem: Path, *, label: str, caption: str) -> list[Path]:
    """Every run on every suite: mean alignment, mean coherence, misaligned count.

    Columns: `run`, `suite`, `mean_alignment`, `mean_coherence`, `misaligned`, one row each pair. The csv
    is long, as the frame; Markdown and LaTeX have a line a run and "alignment / coherence / misaligned"
    a suite.
    """
    import pandas as pd

    columns = ["run", "suite", "mean_alignment", "mean_coherence", "misaligned"]
    cells = frame.assign(
        cell=[
            f"{row.mean_alignment:.1f} / {row.mean_coherence:.1f} / {row.misaligned:.0f}" for row in frame.itertuples()
        ]
    )
    wide = cells.pivot(index="run", columns="suite", values="cell")
    shown = wide.reindex(index=frame["run"].unique(), columns=frame["suite"].unique()).reset_index()
    shown = pd.DataFrame(shown).rename(columns=lambda name: str(name).replace("_", " "))
    title = f"{caption} (mean alignment / mean coherence / misaligned answers)"
    return write_table(frame[columns], stem, caption=title, label=label, shown=shown)
