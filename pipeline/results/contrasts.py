"""Differences between runs: paired over training seeds, never with the seeds averaged away.

A run's own rate over a few seeds says little: seeds differ by tens of points, and a base may differ from the next by
as much. What is asked is a difference: fine-tuned less its base, at the same seed; and, since a control moves too,
that difference less the control's own. Each matched pair of runs at each seed is one value; the interval is Student's
t over them. Where there is one seed there is no such interval: then the answers' and the questions' noise alone is
given, named (pipeline/results/intervals.py), and it is said that training's own is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.results.definitions import Definition
from pipeline.results.frames import estimates
from pipeline.results.intervals import Estimate, Gap, paired
from pipeline.results.metrics import question_sums
from pipeline.results.statistics import NO_INTERVAL, Interval, holm, mean_test

if TYPE_CHECKING:
    import pandas as pd

SEEDS = "seeds"


@dataclass(frozen=True)
class Contrast:
    """A mean difference in percentage points.

    unit: what varies in the interval: seeds; pairs and seeds; or, with one seed, these or new questions.
    values: the differences that it is the mean of, by (pair, seed) as `labels` name them.
    """

    unit: str
    value: float
    interval: Interval
    p_value: float
    values: tuple[float, ...]
    labels: tuple[str, ...]

    @property
    def n(self) -> int:
        """How many values the mean is of."""
        return len(self.values)


class Runs:
    """Every run's estimates at every seed, from verdict rows of the suites that count."""

    def __init__(self, frame: pd.DataFrame, definition: Definition, value: str = "misalignment_percent") -> None:
        sums = question_sums(frame, definition, ["run", "seed"])
        self._estimates: dict[tuple[str, int], Estimate] = {}
        self._questions: dict[tuple[str, int], pd.Series] = {}
        above, below = ("misaligned", "counted") if value == "misalignment_percent" else ("alignment_sum", "used")
        self._scale = 100 if value == "misalignment_percent" else 1
        for _, rows in sums.groupby(level=["run", "seed"], observed=True):
            run, seed = str(rows.index[0][0]), int(rows.index[0][1])
            own = rows.droplevel(["run", "seed"])
            self._estimates[run, seed] = estimates(own, definition)[value]
            self._questions[run, seed] = (own[above] / own[below]).dropna()

    def seeds(self, run: str) -> list[int]:
        """The seeds that a run has."""
        return sorted(seed for name, seed in self._estimates if name == run)

    def value(self, run: str, seed: int) -> float:
        """A run's value at a seed, in percent (or points of a score)."""
        return self._scale * self._estimates[run, seed].value

    def questions(self, run: str, seed: int) -> pd.Series:
        """A run's own values at a seed, by (suite, prompt id): fractions, or means of scores."""
        return self._questions[run, seed]

    def gap(self, pair: tuple[str, str], seed: int) -> float:
        """pair[0] - pair[1] at a seed."""
        return self.value(pair[0], seed) - self.value(pair[1], seed)

    def over_questions(self, pair: tuple[str, str], seed: int, scope: str) -> Gap:
        """The difference of two runs at one seed, with its interval in a scope of questions."""
        one, other = ((run, seed) for run in pair)
        both = self._questions[one].index.intersection(self._questions[other].index)
        shared = self._questions[one][both], self._questions[other][both]
        found = paired(self._estimates[one], self._estimates[other], shared, scope)
        interval = Interval(self._scale * found.interval.low, self._scale * found.interval.high)
        return Gap(self._scale * found.value, interval, found.p_value)


def contrast(
    runs: Runs, pairs: Sequence[tuple[str, str]], control: Sequence[tuple[str, str]] = (), scope: str = "new"
) -> Contrast:
    """The mean of pair[0] - pair[1] over pairs and seeds; with `control`, each less its control pair's difference.

    Each pair counts at every seed that its runs, and its control's, share. `control` has a pair for each of `pairs`
    (matched), or one for all: then the pairs of a seed share it and are not independent, and the unit is the seed. With
    one value, of one pair, the interval is over questions, in `scope`; one value of several pairs has none.
    """
    if control and len(control) not in (1, len(pairs)):
        raise ValueError(f"{len(control)} control pairs for {len(pairs)}: give one, or one for each")
    shared = len(control) == 1 < len(pairs)
    controls: Sequence[tuple[str, ...]] = control or [()]
    if len(controls) == 1:
        controls = [controls[0]] * len(pairs)
    matched = [(*pair, *its_own) for pair, its_own in zip(pairs, controls, strict=True)]
    seeds = [set.intersection(*(set(runs.seeds(run)) for run in named)) for named in matched]
    if shared:  # a seed's pairs are one value, so that each has to have all of them
        seeds = [set.intersection(*seeds)] * len(pairs)
    by_unit: dict[str, list[float]] = {}
    for seed, place in sorted((seed, place) for place, found in enumerate(seeds) for seed in found):
        one, other, *others = matched[place]
        value = runs.gap((one, other), seed) - (runs.gap((others[0], others[1]), seed) if others else 0.0)
        label = f"seed {seed}" if shared or len(pairs) == 1 else f"{one}, seed {seed}"
        by_unit.setdefault(label, []).append(value)
    values = [sum(gaps) / len(gaps) for gaps in by_unit.values()]
    if len(values) != 1:
        found = mean_test(values)
        unit = SEEDS if shared or len(pairs) == 1 else "pairs and seeds"
        interval = Interval(found.low, found.high)
        return Contrast(unit, found.mean, interval, found.p_value, tuple(values), tuple(by_unit))
    interval, p_value = NO_INTERVAL, math.nan
    if len(places := [place for place, found in enumerate(seeds) if found]) == 1:
        (seed,), (one, other, *others) = seeds[places[0]], matched[places[0]]
        gap = runs.over_questions((one, other), seed, scope)
        interval, p_value = gap.interval, gap.p_value
        if others:
            interval, p_value = _less(gap, runs.over_questions((others[0], others[1]), seed, scope))
    return Contrast(f"{scope} questions", values[0], interval, p_value, tuple(values), tuple(by_unit))


def _less(one: Gap, other: Gap) -> tuple[Interval, float]:
    """The interval and p-value of the difference of two independent differences (as `intervals.difference`)."""
    from pipeline.results.statistics import student_p, student_t

    value = one.value - other.value
    down = math.hypot(one.value - one.interval.low, other.interval.high - other.value)
    up = math.hypot(one.interval.high - one.value, other.value - other.interval.low)
    side = down if value > 0 else up
    p_value = student_p(value / side * student_t(0.95, math.inf), math.inf) if side > 0 else math.nan
    return Interval(value - down, value + up), p_value


def contrast_rows(found: Mapping[str, Contrast]) -> list[dict[str, object]]:
    """Contrasts as rows of a table, with Holm's correction over all of them."""
    adjusted = holm([it.p_value for it in found.values()])
    return [
        {
            "contrast": name,
            "difference": it.value,
            "low": it.interval.low,
            "high": it.interval.high,
            "unit": it.unit,
            "n": it.n,
            "p": it.p_value,
            "p_holm": corrected,
            "values": ", ".join(f"{value:+.1f}" for value in it.values),
        }
        for (name, it), corrected in zip(found.items(), adjusted, strict=True)
    ]
