"""Intervals of a rate or a mean within one run: for these questions, and for new ones like them.

A run's number is a mean over questions of means over answers. Two intervals belong to it, and they answer two
questions. `these questions`: how much would the number move if the same questions were asked again? Only the answers
vary, within each question. `new questions`: what would it be for other questions of the same kind? The questions
vary too. Eight questions with fifty answers each pin the first down and the second hardly. docs/statistics.md has the
formulas; the tests simulate the coverage of each in its own scope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.results.statistics import (
    CONFIDENCE,
    NO_INTERVAL,
    Interval,
    score_interval,
    student_p,
    student_t,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

Over = Literal["questions", "rows"]
SCOPES = ("these", "new")
SCOPE_NAMES = {"these": "these questions", "new": "new questions"}
_PRIOR = 4.0  # answers' worth of "no design effect" (z squared, as Agresti and Coull add); keeps a width of 0 away


@dataclass(frozen=True)
class Estimate:
    """A rate (fraction) or a mean over questions, with both its intervals.

    `questions` and `answers` are what it is over; `values`, (questions,), are the questions' own means.
    """

    value: float
    these: Interval
    new: Interval
    questions: int
    answers: int
    values: NDArray[np.float64]

    def interval(self, scope: str) -> Interval:
        """The interval of a scope of SCOPES."""
        return self.these if scope == "these" else self.new


def _weights(counts: NDArray[np.float64], over: Over) -> NDArray[np.float64]:
    import numpy as np

    return counts / counts.sum() if over == "rows" else np.full(len(counts), 1 / len(counts))


def rate(successes: ArrayLike, counts: ArrayLike, over: Over = "questions", confidence: float = CONFIDENCE) -> Estimate:
    """A rate over questions from (questions,) `successes` of `counts`; questions without an answer are left out.

    Both intervals are score intervals with an effective number of answers n / d, d being the design effect: the
    variance of the rate in that scope over the one that n independent answers would have.

    these: d from the variance within questions (unbiased, p(1-p) k/(k-1) for k answers), weighed as events are many,
        with _PRIOR answers' worth of d = 1; a question with one answer shows no variance of its own and gets the
        pooled one, an upper bound: with one answer each the interval is Wilson's; normal critical value.
    new: d from the variance between the questions' rates, at least 1; Student's t with questions - 1 degrees.

    With no event (or nothing else) d is 1 in both, so that 0 and 1 events of n give like intervals.
    """
    import numpy as np

    hits, k = np.asarray(successes, dtype=float), np.asarray(counts, dtype=float)
    hits, k = hits[k > 0], k[k > 0]
    if not len(k):
        return Estimate(math.nan, NO_INTERVAL, NO_INTERVAL, 0, 0, np.array([]))
    weights, shares = _weights(k, over), hits / k
    value = min(1.0, max(0.0, float(weights @ shares)))
    if hits.sum() in (0, k.sum()):  # not a rounding error away from it
        value = float(hits.sum() > 0)
    spread = value * (1 - value)
    independent = 1 / float((weights**2 / k).sum())  # as many independent answers have the variance spread / them
    effective = between = independent
    if spread > 0:
        within = np.where(k > 1, shares * (1 - shares) * k / np.maximum(k - 1, 1), spread)
        effect = independent * float((weights**2 * within / k).sum()) / spread
        # What is known of the spread within questions: nothing from one event, or from all but one.
        freedom = min(float((k - 1).sum()), float(hits.sum()) - 1, float((k - hits).sum()) - 1)
        effective = independent / ((freedom * effect + _PRIOR) / (freedom + _PRIOR))
        if (variance := _between(weights, shares, value)) > 0:
            between = min(independent, spread / variance)
    these = score_interval(value, effective, student_t(confidence, math.inf))
    new = score_interval(value, between, student_t(confidence, len(k) - 1)) if len(k) > 1 else NO_INTERVAL
    return Estimate(value, these, new, len(k), int(k.sum()), shares)


def mean(
    totals: ArrayLike,
    squares: ArrayLike,
    counts: ArrayLike,
    over: Over = "questions",
    limits: tuple[float, float] = (0.0, 100.0),
    confidence: float = CONFIDENCE,
) -> Estimate:
    """A mean over questions from the sums of scores, of their squares, and counts, (questions,) each.

    these: Student's t on the variance within questions, with as many degrees as answers less questions; a question
        with one answer gets the variance of all answers, an upper bound.
    new: Student's t over the questions' means, questions - 1 degrees.

    Both end at `limits`, which no mean of scores can pass.
    """
    import numpy as np

    total, square, k = (np.asarray(it, dtype=float) for it in (totals, squares, counts))
    total, square, k = total[k > 0], square[k > 0], k[k > 0]
    if not len(k):
        return Estimate(math.nan, NO_INTERVAL, NO_INTERVAL, 0, 0, np.array([]))
    weights, means = _weights(k, over), total / k
    value, answers = float(weights @ means), float(k.sum())
    pooled = max(0.0, float(square.sum() - total.sum() ** 2 / answers)) / max(answers - 1, 1)
    within = np.where(k > 1, np.maximum(square - total**2 / k, 0) / np.maximum(k - 1, 1), pooled)
    freedom = float((k - 1).sum()) or answers - 1
    these = new = NO_INTERVAL
    if answers > 1:
        these = _around(value, float((weights**2 * within / k).sum()), freedom, limits, confidence)
    if len(k) > 1:
        new = _around(value, _between(weights, means, value), len(k) - 1, limits, confidence)
    return Estimate(value, these, new, len(k), int(answers), means)


def _between(weights: NDArray[np.float64], values: NDArray[np.float64], value: float) -> float:
    """The variance of the weighted mean as the questions' values differ; the usual s2 / n where weights are equal."""
    n = len(values)
    return float((weights**2 * (values - value) ** 2).sum()) * n / (n - 1) if n > 1 else 0.0


def _around(value: float, variance: float, freedom: float, limits: tuple[float, float], confidence: float) -> Interval:
    half = student_t(confidence, freedom) * math.sqrt(variance)
    return Interval(max(limits[0], value - half), min(limits[1], value + half))


@dataclass(frozen=True)
class Gap:
    """A difference of two estimates with an interval and the two-sided p-value that goes with it."""

    value: float
    interval: Interval
    p_value: float


def difference(one: Estimate, other: Estimate, scope: str, correlation: float = 0.0, freedom: float = math.inf) -> Gap:
    """one - other, its interval made of theirs (Newcombe 1998, method 10; Zou and Donner 2008 call it MOVER).

    `correlation`: between the two estimates, where they are over the same new questions. It keeps what each interval
    knows at 0 and 100 %, where a variance of 0 would claim certainty. The p-value is that of a t statistic (`freedom`
    degrees) whose standard error is the distance to the interval's end on the side of 0, in critical values.
    """
    value = one.value - other.value
    (low_1, high_1), (low_2, high_2) = one.interval(scope), other.interval(scope)

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a**2 + b**2 - 2 * correlation * a * b))

    down = reach(one.value - low_1, high_2 - other.value)
    up = reach(high_1 - one.value, other.value - low_2)
    side = down if value > 0 else up
    if math.isnan(side):
        return Gap(value, NO_INTERVAL, math.nan)
    p_value = (
        1.0 if value == 0 else 0.0 if side == 0 else student_p(value / side * student_t(CONFIDENCE, freedom), freedom)
    )
    return Gap(value, Interval(value - down, value + up), p_value)


def paired(one: Estimate, other: Estimate, shared: tuple[ArrayLike, ArrayLike], scope: str) -> Gap:
    """`difference` of two runs over the same questions; `shared` are both runs' values of the questions they share."""
    import numpy as np

    first, second = (np.asarray(it, dtype=float) for it in shared)
    if scope == "these":
        return difference(one, other, scope)
    constant = len(first) < 2 or float(np.ptp(first)) == 0 or float(np.ptp(second)) == 0
    correlation = 0.0 if constant else float(np.corrcoef(first, second)[0, 1])
    return difference(one, other, scope, correlation, max(1, len(first) - 1))
