"""The statistics that every table, figure and claim uses, each with its source and nothing hidden.

docs/statistics.md has each with its formula and its scope. Wilson's interval, the rank test and Holm's correction
need the standard library alone, so that the audit runs on any Python with nothing installed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import permutations
from operator import mul
from random import Random
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

CONFIDENCE = 0.95
# Of ten units there are 3.6 million permutations; beyond nine this many are drawn.
MOST_ENUMERATED, DRAWN = 9, 9999
Alternative = Literal["greater", "less", "two-sided"]


class Interval(NamedTuple):
    """A two-sided confidence interval; both ends NaN where the data determine none."""

    low: float
    high: float


NO_INTERVAL = Interval(math.nan, math.nan)


class RankTest(NamedTuple):
    """A permutation test of Spearman's rank correlation over `n` units.

    `floor` is the smallest p-value that any data with these ties could have given. drawn: how many random permutations
    it rests on; 0: on all that there are.
    """

    rho: float
    p_value: float
    floor: float
    n: int
    alternative: str
    drawn: int = 0


class MeanTest(NamedTuple):
    """A mean of `n` independent values with its Student t interval and its two-sided p-value against 0."""

    mean: float
    low: float
    high: float
    p_value: float
    n: int


def wilson_interval(successes: float, n: float, confidence: float = CONFIDENCE) -> Interval:
    """Wilson score interval of a proportion, as fractions (Wilson 1927; Newcombe 1998, method 3).

    Returns NaN for n = 0. Raises ValueError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} is impossible")
    if n == 0:
        return NO_INTERVAL
    return score_interval(successes / n, n, NormalDist().inv_cdf((1 + confidence) / 2))


def score_interval(share: float, n: float, critical: float) -> Interval:
    """The score interval of a `share` of `n` effective answers: all p with |share - p| <= critical sqrt(p(1-p)/n).

    With n answers that are independent it is Wilson's. With n an effective size (answers / design effect) and a
    critical value of Student's t it is his interval for clustered data (Korn and Graubard 1998; Dean and Pagano 2015).
    """
    square = critical**2
    scale = 1 + square / n
    centre = (share + square / (2 * n)) / scale
    half = critical * math.sqrt(share * (1 - share) / n + square / (4 * n**2)) / scale
    # Exactly 0 and 1 at the ends, where the terms cancel but for rounding.
    return Interval(0.0 if share == 0 else max(0.0, centre - half), 1.0 if share == 1 else min(1.0, centre + half))


def student_t(confidence: float, freedom: float) -> float:
    """The two-sided critical value of Student's t; the normal one for infinite degrees of freedom."""
    if math.isinf(freedom):
        return NormalDist().inv_cdf((1 + confidence) / 2)
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


def student_p(statistic: float, freedom: float) -> float:
    """The two-sided p-value of a t statistic; the normal one for infinite degrees of freedom."""
    if math.isinf(freedom):
        return 2 * NormalDist().cdf(-abs(statistic))
    from scipy.special import stdtr

    return 2 * float(stdtr(freedom, -abs(statistic)))


def mean_test(values: ArrayLike, confidence: float = CONFIDENCE) -> MeanTest:
    """The mean of independent `values` (one per seed, say) with Student's t interval and p-value, n - 1 degrees.

    Interval and p-value are NaN for fewer than two values: one says nothing of the spread. Where all values are
    equal they leave nothing to estimate a spread from either, and interval and p-value are NaN too.
    """
    import numpy as np

    sample = np.asarray(values, dtype=float)
    n, mean = len(sample), float(sample.mean()) if len(sample) else math.nan
    if n < 2 or float(np.ptp(sample)) == 0:
        return MeanTest(mean, math.nan, math.nan, math.nan, n)
    error = float(sample.std(ddof=1)) / math.sqrt(n)
    half = student_t(confidence, n - 1) * error
    return MeanTest(mean, mean - half, mean + half, student_p(mean / error, n - 1), n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values of a family of tests, in the order given; NaN (no test) stays and counts not."""
    tested = [place for place, p in enumerate(p_values) if not math.isnan(p)]
    adjusted, highest = list(p_values), 0.0
    for rank, place in enumerate(sorted(tested, key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(tested) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def exact_rank_test(
    x: Iterable[float],
    y: Iterable[float],
    alternative: Alternative = "two-sided",
    units: Sequence[Hashable] | None = None,
) -> RankTest:
    """Exact permutation test of Spearman's rho between `x`, a property of units, and `y`, one value per point.

    Under the null every assignment of the units' x to the units is equally likely, so units are permuted and never
    the points within one: six fine-tunes of three models are n = 3 (Good 2005, ch. 3). `units` names the unit of
    each point; None: each point is one. The p-value is the share of assignments whose rho (|rho| if two-sided) is at
    least as extreme as the one found. With n = 3 and no ties a one-sided p-value cannot be below 1/6, nor a two-sided
    one below 1/3. Raises ValueError unless there are 2 to 9 units, each with one x, for a value that is no
    number, and for constant input (its ranks have no correlation). Needs the standard library alone, as the audit does.
    """
    given, points = [float(value) for value in x], [float(value) for value in y]
    names: list[Hashable] = list(range(len(given))) if units is None else list(units)
    order = list(dict.fromkeys(names))
    if not len(given) == len(points) == len(names) or not 2 <= len(order) <= MOST_ENUMERATED:
        raise ValueError(f"need 2 to 9 units, found {len(order)} with {len(given)} and {len(points)} values")
    of_unit = dict(zip(names, given, strict=True))
    if any(of_unit[name] != value for name, value in zip(names, given, strict=True) if value == value):
        raise ValueError("a unit has more than one x")
    rhos = list(_permuted_rhos([of_unit[name] for name in order], [order.index(name) for name in names], points))
    extremes = [_extreme(rho, alternative) for rho in rhos]
    rounding = 1e-9  # far below the distance between two different rhos at n <= 9
    found, most = extremes[0] - rounding, max(extremes) - rounding
    return RankTest(
        rho=rhos[0],
        p_value=sum(it >= found for it in extremes) / len(extremes),
        floor=sum(it >= most for it in extremes) / len(extremes),
        n=len(order),
        alternative=alternative,
    )


def rank_test(x: Sequence[float], y: Sequence[float], alternative: Alternative = "two-sided") -> RankTest:
    """`exact_rank_test` of one point a unit, on DRAWN random permutations where there are over MOST_ENUMERATED units.

    With m drawn, b of which are at least as extreme as what was found, p is (b + 1) / (m + 1), which is never 0 and
    keeps the test's level (Phipson and Smyth 2010). The draws are the same every time.
    """
    if len(x) <= MOST_ENUMERATED:
        return exact_rank_test(x, y, alternative)
    first, second = _centred_ranks(x), _centred_ranks(y)
    norm = math.hypot(*first) * math.hypot(*second)
    if norm == 0:
        raise ValueError("a constant has no rank correlation")
    rho = sum(map(mul, first, second)) / norm
    ordered = sorted(second)
    highest, lowest = (sum(map(mul, sorted(first), ends)) / norm for ends in (ordered, reversed(ordered)))
    random, shuffled, extremes = Random(0), list(first), []
    for _ in range(DRAWN):
        random.shuffle(shuffled)
        extremes.append(_extreme(sum(map(mul, shuffled, second)) / norm, alternative))
    rounding = 1e-9
    found = _extreme(rho, alternative) - rounding
    most = max(_extreme(end, alternative) for end in (highest, lowest)) - rounding
    p_value, floor = ((sum(it >= bound for it in extremes) + 1) / (DRAWN + 1) for bound in (found, most))
    return RankTest(rho, p_value, floor, len(first), alternative, DRAWN)


def _extreme(rho: float, alternative: Alternative) -> float:
    """How far a rho is in the direction of the alternative."""
    return abs(rho) if alternative == "two-sided" else -rho if alternative == "less" else rho


def _permuted_rhos(x: list[float], unit: list[int], y: list[float]) -> Iterator[float]:
    """Spearman's rho under every assignment of `x` to units, the one found first; `unit` is each point's place in x."""
    second = _centred_ranks(y)
    first = _centred_ranks([x[place] for place in unit])
    norm = math.hypot(*first) * math.hypot(*second)
    if norm == 0:
        raise ValueError("a constant has no rank correlation")
    if len({unit.count(place) for place in range(len(x))}) == 1:
        # All units have as many points: a value's rank is the same wherever it goes, and points of a unit go together.
        sums = [sum(rank for rank, own in zip(second, unit, strict=True) if own == place) for place in range(len(x))]
        ranks = [first[unit.index(place)] for place in range(len(x))]
        yield from (sum(map(mul, shuffled, sums)) / norm for shuffled in permutations(ranks))
        return
    for shuffled in permutations(x):
        first = _centred_ranks([shuffled[place] for place in unit])
        yield sum(map(mul, first, second)) / (math.hypot(*first) * math.hypot(*second))


def _centred_ranks(values: Iterable[float]) -> list[float]:
    """Ranks less their mean, ties sharing their mean rank."""
    listed = [float(value) for value in values]
    if any(map(math.isnan, listed)):
        raise ValueError("a value that is no number has no rank")
    return [sum((value > it) - (value < it) for it in listed) / 2 for value in listed]
