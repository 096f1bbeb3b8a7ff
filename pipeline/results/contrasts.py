"""Differences between runs: paired over training seeds, never with the seeds averaged away.

A run's own rate over a few seeds says little: seeds differ by tens of points, and a base may differ from the next by
as much. What is asked is a difference: fine-tuned less its base, at the same seed; and, since a control moves too,
that difference less the control's own. Each matched pair of runs at each seed is one value; the interval is Student's
t over them. Where a contrast has models enough to ask how they differ, each of those is one value: runs of one model
are no more models. Where there is one seed there is no such interval: then the answers' and the questions' noise alone
is given, named (pipeline/results/intervals.py), and it is said that training's own is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.results.definitions import Definition
from pipeline.results.frames import estimates
from pipeline.results.intervals import Estimate, Gap, paired
from pipeline.results.metrics import question_sums
from pipeline.results.statistics import NO_INTERVAL, Interval, holm, mean_test

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.params.parts import Contrast as Settings
    from pipeline.params.schema import Params

SEEDS, MODELS = "seeds", "models"
# Four models have no exact two-sided p-value below 2 / 4! = 0.083, five 0.017.
FEWEST_MODELS = 5
# What may be varied within one model, and what of a run then differs.
ACTIVE, ADAPTED = "active", "adapted"
LEFT_OUT: dict[str, Any] = {ACTIVE: {"active"}, ADAPTED: {"lora": {"experts", "rank"}}}


@dataclass(frozen=True)
class Contrast:
    """A mean difference in percentage points.

    unit: what varies in the interval: seeds; pairs and seeds; models; or, with one seed, these or new questions.
    values: the differences that it is the mean of, by (pair, seed) or model, as `labels` name them.
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

    def less_control(self, named: tuple[str, ...], seed: int) -> float:
        """named[0] - named[1] at a seed and, where there are four, less named[2] - named[3]."""
        one, other, *control = named
        return self.gap((one, other), seed) - (self.gap((control[0], control[1]), seed) if control else 0.0)

    def over_questions(self, pair: tuple[str, str], seed: int, scope: str) -> Gap:
        """The difference of two runs at one seed, with its interval in a scope of questions."""
        one, other = ((run, seed) for run in pair)
        both = self._questions[one].index.intersection(self._questions[other].index)
        shared = self._questions[one][both], self._questions[other][both]
        found = paired(self._estimates[one], self._estimates[other], shared, scope)
        interval = Interval(self._scale * found.interval.low, self._scale * found.interval.high)
        return Gap(self._scale * found.value, interval, found.p_value)


def models_of(params: Params, pairs: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The model of each pair, where FEWEST_MODELS have experts and differ in sparsity; nothing where they do not."""
    models = tuple(params.base_of(tuned) for tuned, _ in pairs)
    sparse = [base for base in map(params.base, dict.fromkeys(models)) if base.experts]
    differ = len({it.experts for it in sparse}) > 1 and len({it.active / it.experts for it in sparse}) > 1
    return models if len(sparse) >= FEWEST_MODELS and differ else ()


def lever_of(params: Params, settings: Settings) -> str | None:
    """Which number of experts differs between the pairs of a contrast, where nothing else does; None where it is none.

    Every pair is then a run of one model less the model itself at that level, and every level has the same training
    sets, trained alike: but for `active`, or for the adapter's experts and rank.
    """
    tuned = [run for run, _ in settings.pairs]
    models = {params.base_of(run) for run in tuned}
    if settings.control or len(models) > 1 or not params.base(models.pop()).experts:
        return None
    if any(params.run(run).data is None or params.untrained(run) != other for run, other in settings.pairs):
        return None
    found = [name for name in LEFT_OUT if len({level_of(params, run, name) for run in tuned}) > 1]
    if len(found) != 1:
        return None
    alike: dict[int, list[str]] = {}
    for run in tuned:
        held = params.run(run).model_dump_json(exclude=LEFT_OUT[found[0]])
        alike.setdefault(level_of(params, run, found[0]), []).append(held)
    return found[0] if len({tuple(sorted(held)) for held in alike.values()}) == 1 else None


def level_of(params: Params, run: str, measure: str) -> int:
    """A run's number of experts: active, where it is sampled, or adapted, in a layer (all, where it has no adapter)."""
    if measure == ACTIVE:
        return params.active_of(run)
    lora = params.run(run).lora
    if lora is None or lora.experts == "all":
        return params.base(params.base_of(run)).experts
    return lora.routed or len(lora.experts)


def any_over_models(found: Iterable[Contrast]) -> bool:
    """Whether models are the unit of a contrast."""
    return any(it.unit == MODELS for it in found)


def by_seed(runs: Runs, matched: Sequence[tuple[str, ...]]) -> dict[int, float]:
    """Seed -> the mean difference of pairs (tuned, base), or (tuned, base, control's tuned, its base).

    Only seeds that all of these runs have.
    """
    seeds = set.intersection(*(set(runs.seeds(run)) for named in matched for run in named))
    return {seed: sum(runs.less_control(named, seed) for named in matched) / len(matched) for seed in sorted(seeds)}


def with_controls(pairs: Sequence[tuple[str, str]], control: Sequence[tuple[str, str]] = ()) -> list[tuple[str, ...]]:
    """Each pair, followed by its control's where there is one. Raises ValueError for another number of controls."""
    if control and len(control) not in (1, len(pairs)):
        raise ValueError(f"{len(control)} control pairs for {len(pairs)}: give one, or one for each")
    controls: Sequence[tuple[str, ...]] = control or [()]
    if len(controls) == 1:
        controls = [controls[0]] * len(pairs)
    return [(*pair, *its_own) for pair, its_own in zip(pairs, controls, strict=True)]


def contrast(
    runs: Runs,
    pairs: Sequence[tuple[str, str]],
    control: Sequence[tuple[str, str]] = (),
    scope: str = "new",
    models: Sequence[str] = (),
) -> Contrast:
    """The mean of pair[0] - pair[1] over pairs and seeds; with `control`, each less its control pair's difference.

    Each pair counts at every seed that its runs, and its control's, share. `control` has a pair for each of `pairs`
    (matched), or one for all: then the pairs of a seed share it and are not independent, and the unit is the seed. With
    one value, of one pair, the interval is over questions, in `scope`; one value of several pairs has none. With
    `models`, the model of each pair, a model is one value (its pairs' mean within a seed, then over seeds), unless all
    share a control; it is NaN where the model has no seed that all of its pairs have.
    """
    shared = len(control) == 1 < len(pairs)
    matched = with_controls(pairs, control)
    if models and not shared:
        return _over_models(runs, matched, models)
    seeds = [set.intersection(*(set(runs.seeds(run)) for run in named)) for named in matched]
    if shared:  # a seed's pairs are one value, so that each has to have all of them
        seeds = [set.intersection(*seeds)] * len(pairs)
    by_unit: dict[str, list[float]] = {}
    for seed, place in sorted((seed, place) for place, found in enumerate(seeds) for seed in found):
        label = f"seed {seed}" if shared or len(pairs) == 1 else f"{matched[place][0]}, seed {seed}"
        by_unit.setdefault(label, []).append(runs.less_control(matched[place], seed))
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


def _over_models(runs: Runs, matched: Sequence[tuple[str, ...]], models: Sequence[str]) -> Contrast:
    of_model: dict[str, list[tuple[str, ...]]] = {}
    for model, named in zip(models, matched, strict=True):
        of_model.setdefault(model, []).append(named)
    seeds = [list(by_seed(runs, own).values()) for own in of_model.values()]
    values = tuple(sum(own) / len(own) if own else math.nan for own in seeds)
    found = mean_test(values)
    return Contrast(MODELS, found.mean, Interval(found.low, found.high), found.p_value, values, tuple(of_model))


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
            "values": ", ".join("-" if math.isnan(value) else f"{value:+.1f}" for value in it.values),
        }
        for (name, it), corrected in zip(found.items(), adjusted, strict=True)
    ]
