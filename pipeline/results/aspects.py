"""The table of a study's own rubrics: what its judges said of every run on every suite, aspect by aspect."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from pipeline.common.rows import Verdict, read_verdicts
from pipeline.params.schema import Params
from pipeline.results.tables import write_rows

COLUMNS = ("judge", "run", "suite", "aspect", "measure", "value", "rows", "missing")


def write_aspects(params: Params, study: str, verdicts: Path, stem: Path) -> list[Path]:
    """Write the table to `stem`.csv, .md and .tex, and return their paths; nothing where no judge has aspects.

    `verdicts` has a folder a run, and in it a file a judge.
    """
    asked = [judge for judge, config in params.study(study).judges.items() if config.aspects]
    rows = [
        row
        for judge in asked
        for run in params.runs_of(study)
        for row in aspect_rows(read_verdicts(verdicts / run / f"{judge}.jsonl"))
    ]
    caption = "The study's own aspects: mean from 0 to 100, or percent of the answers that got a label"
    return write_rows(COLUMNS, rows, stem, caption=caption, label=study) if rows else []


def aspect_rows(verdicts: Iterable[Verdict]) -> list[list[str | float | int]]:
    """One row (COLUMNS) a suite and aspect, or a label of one, over the verdicts on a run's result.

    `value` is the mean of the numbers, or the label's percent of `rows`, the verdicts that have one; `missing` are
    those that have none.
    """
    found: dict[tuple[str, ...], list[float | str | None]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.step is None:
            for aspect, value in verdict.values.items():
                found[verdict.judge, verdict.run, verdict.suite, aspect].append(value)
    rows: list[list[str | float | int]] = []
    for key, values in found.items():
        numbers = [value for value in values if isinstance(value, int | float)]
        labels = Counter(value for value in values if isinstance(value, str))
        missing = values.count(None)
        if numbers:
            rows.append([*key, "mean", sum(numbers) / len(numbers), len(numbers), missing])
        for label, count in sorted(labels.items()):
            rows.append([*key, label, 100 * count / labels.total(), labels.total(), missing])
    return rows
