"""A regression over models, each of which is known with an error: meta-regression with random effects.

y_i = x_i b + u_i + e_i: u_i, how models differ beside x, has variance tau^2 (estimated); e_i, the error of a model's
mean over its training seeds, has the known variance v_i. tau^2 is Paule and Mandel's (1982; DerSimonian and Kacker
2007): the one at which Q = sum w_i (y_i - x_i b)^2, w_i = 1 / (v_i + tau^2), is its degrees of freedom, or 0 where Q is
less than those at 0. Intervals are Hartung and Knapp's (2001; Knapp and Hartung 2003 for regressions): Student's t with
n - p degrees, the variance of b multiplied by Q / (n - p), which is not cut off at 1. Where all v_i are the same, the
interval is that of ordinary least squares, whatever that v is: then nothing rests on how well v is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipeline.results.statistics import CONFIDENCE, NO_INTERVAL, Interval, student_p, student_t

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike


class Coefficient(NamedTuple):
    """One coefficient with its interval and its two-sided p-value against 0; NaN where the fit leaves no spread."""

    value: float
    interval: Interval
    p_value: float


class MetaRegression(NamedTuple):
    """The intercept and the coefficient of each column, tau^2, and for every model its fit and its pooled value.

    pooled: the best linear unbiased prediction of x_i b + u_i (Raudenbush and Bryk 1985): the model's own value, drawn
    towards the line by v_i / (v_i + tau^2).
    """

    coefficients: tuple[Coefficient, ...]
    tau_squared: float
    fitted: np.ndarray
    pooled: np.ndarray


def meta_regression(
    values: ArrayLike, variances: ArrayLike, columns: Sequence[ArrayLike], confidence: float = CONFIDENCE
) -> MetaRegression:
    """The regression of `values` (one per model, with the `variances` of their errors) on `columns` and an intercept.

    Values that the columns fit but for rounding leave nothing to estimate a spread from: intervals and p-values are NaN
    then. Raises ValueError where there are no more models than coefficients, columns that others determine, or a value
    that is no number.
    """
    import numpy as np

    y, v = np.asarray(values, dtype=float), np.asarray(variances, dtype=float)
    design = np.column_stack([np.ones(len(y)), *(np.asarray(column, dtype=float) for column in columns)])
    freedom = len(y) - design.shape[1]
    if not (np.isfinite(y).all() and np.isfinite(v).all() and np.isfinite(design).all()):
        raise ValueError("a value that is no number has no regression")
    if freedom < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError(f"{len(y)} models do not determine {design.shape[1]} coefficients and their spread")
    estimate, _, residual = _fit(y, np.ones(len(y)), design)
    if residual / freedom <= 1e-12 * y.var() + 1e-24 * float(np.mean(y**2)):
        exact = tuple(Coefficient(float(value), NO_INTERVAL, float("nan")) for value in estimate)
        return MetaRegression(exact, 0.0, design @ estimate, design @ estimate)
    tau_squared = paule_mandel(y, v, design)
    weights = 1 / np.maximum(v + tau_squared, np.finfo(float).tiny)
    estimate, inverse, q = _fit(y, weights, design)
    critical, found = student_t(confidence, freedom), []
    for value, error in zip(estimate, np.sqrt(np.diag(inverse) * q / freedom), strict=True):
        p_value = student_p(float(value / error), freedom) if error > 0 else float("nan")
        half = critical * float(error)
        found.append(Coefficient(float(value), Interval(float(value) - half, float(value) + half), p_value))
    fitted = design @ estimate
    return MetaRegression(tuple(found), tau_squared, fitted, fitted + tau_squared * weights * (y - fitted))


def paule_mandel(y: np.ndarray, v: np.ndarray, design: np.ndarray) -> float:
    """tau^2 at which Q is its degrees of freedom (Q falls as tau^2 rises), 0 where it is less than those at 0."""
    from scipy.optimize import brentq

    freedom = len(y) - design.shape[1]
    # Weights of one size give the residual variance, beyond which Q is less than its degrees of freedom.
    spread = _fit(y, y * 0 + 1.0, design)[2] / freedom

    def excess(tau_squared: float) -> float:
        return _fit(y, 1 / (v + tau_squared), design)[2] - freedom

    least = float(1e-12 * spread)
    if spread <= 0 or excess(least) <= 0:
        return 0.0
    highest = spread
    while excess(highest) > 0:
        highest *= 2
    return float(brentq(excess, least, highest, xtol=1e-12 * spread, rtol=1e-12))


def _fit(y: np.ndarray, weights: np.ndarray, design: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Weighted least squares: the coefficients, (X' W X)^-1, and the weighted sum of squared residuals."""
    import numpy as np

    weighted = design.T * weights
    inverse = np.linalg.inv(weighted @ design)
    estimate = inverse @ (weighted @ y)
    return estimate, inverse, float(weights @ (y - design @ estimate) ** 2)
