"""Ratios and rank correlations of a few units, with what they do not determine left open."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.results.statistics import CONFIDENCE, NO_INTERVAL, Interval, student_t

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

SHUFFLES = 10_000


def fieller(above: ArrayLike, below: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """The interval of mean(above) / mean(below) over paired units (Fieller 1954), n - 1 degrees of freedom.

    All r with |mean(above - r below)| within t standard errors. With g = t^2 var(below) / (n mean(below)^2) they are a
    bounded interval where g < 1; where the denominator is not clearly other than 0 (g >= 1) both ends are NaN.
    """
    import numpy as np

    x, y = np.asarray(above, float), np.asarray(below, float)
    n = len(x)
    if n < 2 or y.mean() == 0:
        return NO_INTERVAL
    square = student_t(confidence, n - 1) ** 2 / n
    xx, yy, xy = x.var(ddof=1), y.var(ddof=1), float(np.cov(x, y, ddof=1)[0, 1])
    # The roots of a r^2 - 2 b r + c, which is (mean(x) - r mean(y))^2 less its t^2 variances.
    a, b, c = y.mean() ** 2 - square * yy, x.mean() * y.mean() - square * xy, x.mean() ** 2 - square * xx
    if a <= 0 or b * b < a * c:
        return NO_INTERVAL
    root = math.sqrt(b * b - a * c)
    return Interval(float((b - root) / a), float((b + root) / a))


def share_of_effect(part: ArrayLike, effect: ArrayLike, *, resolved: bool) -> tuple[float, Interval]:
    """The share of an effect that a part makes up, and its interval; NaN where there is no effect to divide."""
    import numpy as np

    x, y = np.asarray(part, float), np.asarray(effect, float)
    if not resolved or not len(x):
        return math.nan, NO_INTERVAL
    return float(x.mean() / y.mean()), fieller(x, y)


def spearman(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Spearman's rho and its two-sided permutation p-value (10,000 shuffles, always the same); NaN for a constant."""
    import numpy as np
    import pandas as pd

    first, second = (pd.Series(np.asarray(it, float)).rank().to_numpy() for it in (x, y))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan, math.nan
    first, second = first - first.mean(), second - second.mean()
    norm = float(np.sqrt((first**2).sum() * (second**2).sum()))
    rho = float(first @ second) / norm
    random = np.random.default_rng(0)
    shuffled = random.permuted(np.tile(first, (SHUFFLES, 1)), axis=1) @ second / norm
    return rho, float((1 + (np.abs(shuffled) >= abs(rho) - 1e-9).sum()) / (1 + SHUFFLES))
