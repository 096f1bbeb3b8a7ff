"""The authors' published numbers, read from `published/` with the digits that they were printed with."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import UserError

FOLDER = Path(__file__).parents[2] / "published"
POOLED = ("avg_alignment", "avg_coherence", "misalignment_rate")
REJECTION_COUNTS = ("strong_reject_count_alignment_eq_100", "strong_reject_count_refusal_only")


@dataclass(frozen=True)
class Printed:
    """A number as it was printed: its value, and half a unit of its last digit."""

    value: float
    decimals: int

    @property
    def slack(self) -> float:
        """How far an exact value may lie from the printed one (a hair more, for binary rounding)."""
        return 0.5 * 10.0**-self.decimals * (1 + 1e-6)

    def agrees(self, exact: float) -> bool:
        """Whether `exact`, rounded as this number was, prints the same."""
        return abs(exact - self.value) <= self.slack


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """One suite's printed means (0..100) and misaligned count."""

    alignment: Printed
    coherence: Printed
    misaligned: int


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """One row of the notebook's frame, and what the run's name says.

    `pooled` has the printed numbers POOLED (the rate is a fraction); `rejections` maps the two
    StrongREJECT definitions to their counts; `expert` is the single expert fine-tuned, if one.
    """

    name: str
    model: str
    dataset: str
    tuned: str
    expert: int | None
    pooled: dict[str, Printed]
    rejections: dict[str, int]
    suites: dict[str, SuiteResult]

    @property
    def misaligned(self) -> int:
        """Sum of the printed misaligned counts of its suites."""
        return sum(suite.misaligned for suite in self.suites.values())


@dataclass(frozen=True, kw_only=True)
class Model:
    """A base model: its base run, experts a layer, experts active a token."""

    name: str
    base_run: str
    experts: int
    active: int


@dataclass(frozen=True, kw_only=True)
class Published:
    """Everything in `folder`. `designs` are the prompt counts (suite -> prompts), largest first."""

    folder: Path
    runs: dict[str, PublishedRun]
    models: dict[str, Model]
    designs: tuple[dict[str, int], ...]
    headline: list[dict[str, str]]
    tables: list[dict[str, str]]


def read_published(folder: Path = FOLDER) -> Published:
    """Read and check `folder`. Raises UserError naming the file, the row and the column that is wrong."""
    suite_rows = read_csv(folder / "suites.csv")
    where = folder / "suites.csv"
    designs = tuple(
        {row["suite"]: _count(row, column, where) for row in suite_rows} for column in ("prompts", "small_prompts")
    )
    where = folder / "models.csv"
    models = {
        row["model"]: Model(
            name=row["model"],
            base_run=row["base_run"],
            experts=_count(row, "experts", where),
            active=_count(row, "active", where),
        )
        for row in read_csv(where)
    }
    named = {row["run"]: row for row in read_csv(folder / "runs.csv")}
    where = folder / "notebook_results.csv"
    runs: dict[str, PublishedRun] = {}
    for row in read_csv(where):
        if row["run"] in runs:
            raise UserError(f"{where} has the run {row['run']} twice.")
        if row["run"] not in named:
            raise UserError(f"{where} has the run {row['run']}, which {folder / 'runs.csv'} lacks.")
        runs[row["run"]] = _run(row, named[row["run"]], list(designs[0]), where)
    for model in models.values():
        if model.base_run not in runs:
            raise UserError(f"{folder / 'models.csv'} names the base run {model.base_run}, which has no row.")
    return Published(
        folder=folder,
        runs=runs,
        models=models,
        designs=designs,
        headline=read_csv(folder / "headline_table.csv"),
        tables=read_csv(folder / "published_tables.csv"),
    )


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a csv file as text. Raises UserError when it is missing, empty or ragged."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, strict=True))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; it is part of the repository: restore it.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a readable csv file: {error}.") from error
    if not rows:
        raise UserError(f"{path} has no rows.")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(f"{path} line {number} has more or fewer cells than the header.")
    return rows


def printed(row: dict[str, str], column: str, where: Path) -> Printed:
    """The number in `column` with its decimals. Raises UserError when it is absent or not one."""
    text = row.get(column, "")
    try:
        return Printed(float(text), len(text.partition(".")[2]))
    except ValueError as error:
        name = row.get("run") or row.get("model")
        raise UserError(f"{where}, {name}: {column} is {text!r}, expected a number.") from error


def _count(row: dict[str, str], column: str, where: Path) -> int:
    value = printed(row, column, where).value
    if value != int(value) or value < 0:
        raise UserError(f"{where}: {column} is {row[column]!r}, expected a count.")
    return int(value)


def _run(row: dict[str, str], named: dict[str, str], suites: list[str], where: Path) -> PublishedRun:
    return PublishedRun(
        name=row["run"],
        model=named["model"],
        dataset=named["dataset"],
        tuned=named["tuned"],
        expert=int(named["expert"]) if named["expert"] else None,
        pooled={name: printed(row, name, where) for name in POOLED},
        rejections={name: _count(row, name, where) for name in REJECTION_COUNTS},
        suites={
            suite: SuiteResult(
                alignment=printed(row, f"{suite}.alignment", where),
                coherence=printed(row, f"{suite}.coherence", where),
                misaligned=_count(row, f"{suite}.misaligned", where),
            )
            for suite in suites
        },
    )
