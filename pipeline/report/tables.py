"""The tables of the report: rows of cells that sort as numbers and read as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.export.rows import experts_of
from pipeline.results.definitions import STANDARD
from pipeline.results.frames import by_seed_text
from pipeline.results.intervals import SCOPE_NAMES
from pipeline.results.metrics import suite_metrics
from pipeline.results.tables import format_cell

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.results.study import Results


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: `key` is its name for scripts, `title` for readers; `choice` gives it a filter of its own."""

    key: str
    title: str
    decimals: int | None = None
    choice: bool = False

    @property
    def numeric(self) -> bool:
        """Whether it sorts as numbers."""
        return self.decimals is not None


@dataclass(frozen=True)
class Cell:
    """What a cell sorts by (empty: no value) and what it shows."""

    value: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that sorts and filters; `choices` maps a column's place to the values that its filter offers."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    @property
    def choices(self) -> dict[int, list[str]]:
        """Column's place -> its values, in the order of the rows."""
        return {
            place: list(dict.fromkeys(row[place].text for row in self.rows))
            for place, column in enumerate(self.columns)
            if column.choice
        }


_RUN = (
    Column(key="run", title="run"),
    Column(key="role", title="role", choice=True),
    Column(key="model", title="model", choice=True),
    Column(key="experts_adapted", title="experts adapted", choice=True),
)
_RATE = Column(key="misalignment_percent", title="misaligned %", decimals=1)
_SEEDS = (Column(key="by_seed", title="by seed"),)
_QUESTIONS = tuple(
    Column(key=f"misalignment_percent_{scope}_{end}", title=f"{name}, {end}", decimals=1)
    for scope, name in SCOPE_NAMES.items()
    for end in ("low", "high")
)
_STANDARD = (Column(key="standard_percent", title="standard %", decimals=1),)
_COUNTS = (
    Column(key="misaligned", title="misaligned", decimals=0),
    Column(key="counted", title="of (n)", decimals=0),
)
_MEANS = (
    Column(key="mean_alignment", title="mean alignment", decimals=1),
    Column(key="mean_coherence", title="mean coherence", decimals=1),
    Column(key="refusal_percent", title="refused %", decimals=1),
    Column(key="rows", title="answers", decimals=0),
    Column(key="seeds", title="seeds", decimals=0),
)


def headline_table(results: Results) -> Table:
    """One row a run: its misalignment on the held-out suites."""
    held_out = ", ".join(results.study.held_out)
    caption = f"Misaligned answers (%) on the suites that no run is trained on ({held_out}); {_rule(results)}"
    return _table("by-run", caption, _RUN, results.held_out_by_run, results)


def suite_table(results: Results) -> Table:
    """One row a run and suite."""
    frame = results.by_suite
    if results.definition is not STANDARD:
        per_seed = suite_metrics(results.untagged, STANDARD)
        standard = per_seed.groupby(["run", "suite"])["misalignment_percent"].mean().rename("standard_percent")
        frame = frame.join(standard, on=["run", "suite"])
    columns = (*_RUN, Column(key="suite", title="suite", choice=True))
    return _table(
        "by-suite", f"Misaligned answers (%) of every run on every suite; {_rule(results)}", columns, frame, results
    )


def _rule(results: Results) -> str:
    beside = "" if results.definition is STANDARD else f"; standard %: {STANDARD.rule}"
    return f"{results.definition.name} definition: {results.definition.rule}{beside}; {results.spread}."


def _table(name: str, caption: str, keys: Sequence[Column], frame: pd.DataFrame, results: Results) -> Table:
    columns = (
        *keys,
        _RATE,
        *(_SEEDS if results.several_seeds else _QUESTIONS),
        *(() if results.definition is STANDARD else _STANDARD),
        *_COUNTS,
        *_MEANS,
    )
    frame = frame.assign(
        experts_adapted=[experts_of(results.params, run) for run in frame["run"]],
        by_seed=frame["misalignment_percent_by_seed"].map(by_seed_text),
    )
    rows = [[cell(row[column.key], column) for column in columns] for row in frame.to_dict("records")]
    return Table(name=name, caption=caption, columns=columns, rows=rows)


def cell(value: Any, column: Column) -> Cell:
    """A cell from a value; None and NaN are no value, shown as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Cell("", format_cell(None, 0))
    if column.decimals is None:
        return Cell(str(value), str(value))
    return Cell(repr(float(value)), format_cell(float(value), column.decimals))
