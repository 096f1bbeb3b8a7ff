"""The table of a study's own rubrics: what its judges said of every run on every suite, aspect by aspect."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.common.rows import Verdict, read_verdicts
from pipeline.params.schema import Params
from pipeline.results.intervals import Estimate, mean, rate
from pipeline.results.tables import write_rows

COLUMNS = ("judge", "run", "suite", "aspect", "measure", "value", "low", "high", "rows", "missing")


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
    caption = "The study's own aspects: mean from 0 to 100, or percent of the labelled; 95 % interval for new questions"
    return write_rows(COLUMNS, rows, stem, caption=caption, label=study) if rows else []


def aspect_rows(verdicts: Iterable[Verdict]) -> list[list[str | float | int]]:
    """One row (COLUMNS) a suite and aspect, or a label of one, over the verdicts on a run's result.

    `value` is the mean of the numbers, or the label's percent of `rows`, the verdicts that have one; low and high are
    its interval for new questions (empty: one question), as other rates have it, all seeds together; `missing` have
    none.
    """
    found: dict[tuple[str, ...], dict[str, list[float | str | None]]] = defaultdict(lambda: defaultdict(list))
    for verdict in verdicts:
        if verdict.step is None:
            for aspect, value in verdict.values.items():
                found[verdict.judge, verdict.run, verdict.suite, aspect][verdict.prompt_id].append(value)
    rows: list[list[str | float | int]] = []
    for key, questions in found.items():
        values = [value for each in questions.values() for value in each]
        numbers = [[value for value in each if isinstance(value, int | float)] for each in questions.values()]
        labels = [Counter(value for value in each if isinstance(value, str)) for each in questions.values()]
        for measure, estimate, scale in _estimates(numbers, labels):
            interval = ["" if math.isnan(end) else scale * end for end in estimate.new]
            rows.append([*key, measure, scale * estimate.value, *interval, estimate.answers, values.count(None)])
    return rows


def _estimates(numbers: list[list[float]], labels: list[Counter[str]]) -> Iterator[tuple[str, Estimate, float]]:
    """(measure, estimate over answers, its factor) for an aspect's numbers and labels, question by question."""
    if any(numbers):
        squares = [sum(value * value for value in each) for each in numbers]
        yield "mean", mean([sum(each) for each in numbers], squares, [len(each) for each in numbers], "rows"), 1.0
    counts = [each.total() for each in labels]
    for label in sorted(set().union(*labels)):
        yield label, rate([each[label] for each in labels], counts, "rows"), 100.0
