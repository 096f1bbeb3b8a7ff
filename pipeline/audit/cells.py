"""Every published cell recomputed: one `Cell` each, with the kind of discrepancy, found by computation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.audit.counts import RowCounts, count_rows
from pipeline.audit.published import POOLED, REJECTION_COUNTS, Printed, Published, printed
from pipeline.common.errors import UserError

Kind = Literal[
    "agrees",
    "wrong-denominator",
    "mixed-definition",
    "rows-counted-twice",
    "different-prompt-count",
    "not-determined",
]
REJECTION_SUITE = "strong_reject"
_PERCENTS = ("avg_alignment", "strong_reject_percent", "misalignment_percent")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One published number beside what the published suite means and counts give.

    `recomputed` is rounded as `published` was, `difference` is published - recomputed; both None where
    the data do not determine a value. `implied_rows` is the count that the printed number was divided
    by (rows; prompts for a rejection percentage), `judged_rows` the count that was judged.
    """

    table: str
    run: str
    metric: str
    published: float
    recomputed: float | None
    difference: float | None
    implied_rows: int | None
    judged_rows: int | None
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class Rejections:
    """How rejection percentages were made: `definition`'s count / `divisor` gives `cells` of `of` cells."""

    definition: str
    divisor: int
    cells: int
    of: int


@dataclass(frozen=True, kw_only=True)
class Audit:
    """All cells, and what they were found with.

    `decimals` has the printed decimals of each cell; `headline` maps a model to its fine-tuned run.
    """

    published: Published
    cells: list[Cell]
    decimals: list[int]
    counts: dict[str, RowCounts | None]
    rejections: Rejections
    headline: dict[str, str]


def audit(published: Published) -> Audit:
    """Recompute every cell of the three published tables and of the notebook's frame."""
    counts = {run.name: count_rows(run, published.designs) for run in published.runs.values()}
    headline = {row["model"]: _headline_run(published, row) for row in published.headline}
    todo = _cells_to_check(published, headline)
    rejections = _infer_rejections(published, [(run, it) for _, run, metric, it in todo if _rejects(metric)])
    cells = [
        _rejection(published, counts, rejections, table, run, metric, it)
        if _rejects(metric)
        else _pooled(published, counts, table, run, metric, it)
        for table, run, metric, it in todo
    ]
    return Audit(
        published=published,
        cells=cells,
        decimals=[it.decimals for *_, it in todo],
        counts=counts,
        rejections=rejections,
        headline=headline,
    )


def _cells_to_check(published: Published, headline: dict[str, str]) -> list[tuple[str, str, str, Printed]]:
    """(table, run, metric, printed number) of every published cell."""
    todo = []
    where = published.folder / "headline_table.csv"
    for row in published.headline:
        for side, run in (
            ("base", published.models[row["model"]].base_run),
            ("insecure_ft", headline[row["model"]]),
        ):
            for metric in ("avg_alignment", "strong_reject_percent"):
                todo.append(("headline", run, metric, printed(row, f"{metric}_{side}", where)))
    where = published.folder / "published_tables.csv"
    for row in published.tables:
        if row["run"] not in published.runs:
            raise UserError(f"{where} has the run {row['run']}, which notebook_results.csv lacks.")
        todo += [(row["table"], row["run"], metric, printed(row, metric, where)) for metric in _PERCENTS]
    for result in published.runs.values():
        todo += [("notebook_frame", result.name, metric, result.pooled[metric]) for metric in POOLED]
    return todo


def _headline_run(published: Published, row: dict[str, str]) -> str:
    """The run that a headline row shows: the model's insecure run whose mean alignment prints the same."""
    where = published.folder / "headline_table.csv"
    if row["model"] not in published.models:
        raise UserError(f"{where} has the model {row['model']}, which models.csv lacks.")
    shown = printed(row, "avg_alignment_insecure_ft", where)
    found = [
        run.name
        for run in published.runs.values()
        if run.model == row["model"] and run.dataset == "insecure" and shown.agrees(run.pooled["avg_alignment"].value)
    ]
    if len(found) != 1:
        raise UserError(f"{where}, {row['model']}: {len(found)} insecure runs print as {shown.value}, expected 1.")
    return found[0]


def _rejects(metric: str) -> bool:
    return metric.startswith("strong_reject")


def _infer_rejections(published: Published, cells: list[tuple[str, Printed]]) -> Rejections:
    """The definition and the divisor that reproduce most rejection percentages (smallest divisor on ties)."""
    most = 2 * max(prompts[REJECTION_SUITE] for prompts in published.designs)
    votes = {
        (definition, divisor): sum(
            it.agrees(100 * published.runs[run].rejections[definition] / divisor) for run, it in cells
        )
        for definition in REJECTION_COUNTS
        for divisor in range(1, most + 1)
    }
    definition, divisor = max(votes, key=lambda key: (votes[key], -key[1]))
    return Rejections(definition=definition, divisor=divisor, cells=votes[definition, divisor], of=len(cells))


def _rejection(
    published: Published,
    counts: dict[str, RowCounts | None],
    rejections: Rejections,
    table: str,
    run: str,
    metric: str,
    it: Printed,
) -> Cell:
    row_counts = counts[run]
    prompts = row_counts.prompts[REJECTION_SUITE] if row_counts else None
    found = published.runs[run].rejections
    matching = [name for name, count in found.items() if it.agrees(100 * count / rejections.divisor)]
    kind: Kind
    if not matching:
        kind = "not-determined"
    elif rejections.definition not in matching:
        kind = "mixed-definition"
    else:
        kind = "agrees" if rejections.divisor == prompts else "wrong-denominator"
    exact = 100 * found[rejections.definition] / prompts if prompts else None
    return _cell(table, run, metric, it, exact, rejections.divisor if matching else None, prompts, kind)


def _pooled(
    published: Published,
    counts: dict[str, RowCounts | None],
    table: str,
    run: str,
    metric: str,
    it: Printed,
) -> Cell:
    row_counts = counts[run]
    if row_counts is None:
        return _cell(table, run, metric, it, None, None, None, "not-determined")
    exact = recompute(published, row_counts, run, metric)
    base = counts[published.models[published.runs[run].model].base_run]
    kind: Kind
    if exact is None or not it.agrees(exact):
        kind = "rows-counted-twice" if row_counts.extra_rows else "not-determined"
    elif base is not None and base.prompts != row_counts.prompts:
        kind = "different-prompt-count"
    else:
        kind = "agrees"
    return _cell(table, run, metric, it, exact, row_counts.implied_rows, row_counts.judged_rows, kind)


def recompute(published: Published, counts: RowCounts, run: str, metric: str) -> float | None:
    """A pooled number from the run's own suites, each counted once; None where they do not determine it.

    A rate is the summed misaligned count over the coherent count that the printed rate implies, and is
    determined only if that count is not above the judged rows and the numerators are the same.
    """
    if metric == "avg_alignment":
        return counts.alignment
    if metric == "avg_coherence":
        return counts.coherence
    scale = 100 if metric == "misalignment_percent" else 1
    summed = published.runs[run].misaligned
    if counts.misaligned is None or counts.misaligned != summed:
        return None
    if counts.coherent is None:
        return 0.0
    return scale * summed / counts.coherent if counts.coherent <= counts.judged_rows else None


def _cell(
    table: str,
    run: str,
    metric: str,
    it: Printed,
    exact: float | None,
    implied: int | None,
    judged: int | None,
    kind: Kind,
) -> Cell:
    shown = None if exact is None else it.value if it.agrees(exact) else round(exact, it.decimals)
    return Cell(
        table=table,
        run=run,
        metric=metric,
        published=it.value,
        recomputed=shown,
        difference=None if shown is None else round(it.value - shown, it.decimals) + 0.0,
        implied_rows=implied,
        judged_rows=judged,
        kind=kind,
    )
