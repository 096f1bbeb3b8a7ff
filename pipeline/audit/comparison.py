"""Published claims against a study's verdicts, one line each: PASS, DIFFERS, UNCLEAR or NOT RUN.

DIFFERS takes evidence against the claim. Where the reproduced numbers neither bear a direction or an order out nor
contradict what was published, the result is UNCLEAR, which is no pass.

Reproduced numbers follow the `published` definition (pipeline/results/metrics.py), rows of all suites pooled,
each suite with the weight that it had in the published run: the whole-model runs answered fewer prompts, in
other shares. Intervals are 95 % percentile bootstraps over questions (Efron and Tibshirani 1993), drawn once for
all runs, so that differences between runs are paired. They hold the noise of sampling, and nothing of training:
a run has one seed, here as there.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Literal

from pipeline.audit.cells import REJECTION_SUITE, Audit
from pipeline.audit.claims import Claim, Number, published
from pipeline.results.metrics import PUBLISHED, classify
from pipeline.results.statistics import CONFIDENCE, Interval

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

Kinds = tuple[tuple[str, str], ...]
Result = Literal["PASS", "DIFFERS", "UNCLEAR", "NOT RUN"]
RESAMPLES = 2000
NOTHING = "\N{EN DASH}"
# A published column's numerator, denominator, scale, and the one suite that it is about (None: all, pooled).
_MEASURES: dict[str, tuple[str, str, float, str | None]] = {
    "avg_alignment": ("alignment_sum", "used", 1, None),
    "misalignment_percent": ("misaligned", "coherent", 100, None),
    "misalignment_rate": ("misaligned", "coherent", 1, None),
    "strong_reject_percent": ("full_alignment", "rows", 100, REJECTION_SUITE),
}
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Line:
    """One claim's outcome as text.

    `missing` says what was not run; `kinds` are the (run, discrepancy) that the audit found in the published number.
    """

    claim: str
    published: str
    tolerance: str
    result: Result
    reproduced: str = NOTHING
    interval: str = NOTHING
    missing: tuple[str, ...] = ()
    kinds: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Estimate:
    """A reproduced number with its resamples, and how many equally weighted questions it is worth (Kish)."""

    value: float
    resamples: NDArray[np.float64]
    questions: float

    @property
    def interval(self) -> Interval:
        """95 % percentile interval; NaN where there is no value."""
        import numpy as np

        if not math.isfinite(self.value):
            return Interval(math.nan, math.nan)
        tail = 100 * (1 - CONFIDENCE) / 2
        low, high = np.nanpercentile(self.resamples, [tail, 100 - tail])
        return Interval(float(low), float(high))


class Reproduced:
    """The runs that have verdicts, resampled together.

    `frame` is a verdict frame of some or all runs, None where there is none. `weights` maps a run to the prompts
    that each suite had in the published run: a suite counts as much here as it did there.
    """

    def __init__(self, frame: pd.DataFrame | None, weights: Mapping[str, Mapping[str, int]]) -> None:
        import numpy as np

        self._runs: dict[str, pd.DataFrame] = {}
        self._weights = weights
        if frame is None:
            return
        rows = classify(frame, PUBLISHED)
        rows["question"] = rows.groupby(["suite", "prompt_id"], sort=True).ngroup()
        per_suite = rows.groupby(["run", "suite"])["question"].transform("size")
        prompts = [weights.get(run, {}).get(suite, 0) for run, suite in zip(rows["run"], rows["suite"], strict=True)]
        rows["weight"] = np.asarray(prompts) / per_suite
        self._runs = {str(run): group for run, group in rows.groupby("run")}
        count = int(rows["question"].max()) + 1
        drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
        self._draws = np.vstack([np.ones(count), drawn])

    def missing(self, run: str, column: str) -> str | None:
        """What of a run was not run, so that it has no number for a column; None where it has one.

        A suite of fewer prompts than the published run's was not run: its noise would make anything agree.
        """
        if run not in self._runs:
            return run
        only = _MEASURES[column][3]
        asked = self._runs[run].groupby("suite")["prompt_id"].nunique()
        lacking = [
            f"{suite} ({asked.get(suite, 0)} of {prompts} prompts)"
            for suite, prompts in self._weights[run].items()
            if asked.get(suite, 0) < prompts and only in (None, suite)
        ]
        return f"{run} on {', '.join(lacking)}" if lacking else None

    def estimate(self, run: str, column: str) -> Estimate:
        """A run's number for a published column."""
        import numpy as np

        above, below, scale, only = _MEASURES[column]
        rows = self._runs[run]
        rows = rows if only is None else rows[rows["suite"] == only]
        size = self._draws.shape[1]

        def per_question(values: pd.Series) -> NDArray[np.float64]:
            weighted = (values * rows["weight"]).to_numpy(dtype=np.float64)
            return np.bincount(rows["question"], weights=weighted, minlength=size).astype(np.float64)

        numerators, denominators = per_question(rows[above]), per_question(rows[below])
        with np.errstate(invalid="ignore"):
            ratios = scale * (self._draws @ numerators) / (self._draws @ denominators)
        asked = denominators[denominators > 0]
        questions = float(asked.sum() ** 2 / (asked**2).sum()) if len(asked) else 0.0
        if above != "alignment_sum" and len(asked) and ratios[0] in (0, scale):
            # All resamples are equal, which is no certainty: Jeffreys' posterior (Brown, Cai and DasGupta 2001), a
            # question counted once, drawn apart for each run.
            successes = len(asked) if ratios[0] else 0
            random = np.random.default_rng(zlib.crc32(run.encode()))
            ratios[1:] = scale * random.beta(successes + 0.5, len(asked) - successes + 0.5, size=len(ratios) - 1)
        return Estimate(float(ratios[0]), ratios[1:], questions)


def check_claim(claim: Claim, audit: Audit, reproduced: Reproduced) -> Line:
    """One claim's line."""
    numbers = published(audit, claim)
    shown, tolerance = _published_text(claim, numbers), _tolerance_text(claim)
    gaps = [reproduced.missing(run, claim.column) for run in (*claim.runs, *claim.minus)]
    kinds = tuple(dict.fromkeys(kind for number in numbers for kind in number.kinds))
    if missing := tuple(dict.fromkeys(gap for gap in gaps if gap)):
        return Line(
            claim=claim.claim, published=shown, tolerance=tolerance, result="NOT RUN", missing=missing, kinds=kinds
        )
    estimates = [reproduced.estimate(run, claim.column) for run in claim.runs]
    for place, run in enumerate(claim.minus):
        one, other = estimates[place], reproduced.estimate(run, claim.column)
        questions = min(one.questions, other.questions)
        estimates[place] = Estimate(one.value - other.value, one.resamples - other.resamples, questions)
    if claim.kind == "order":
        return _order(claim, numbers, estimates, shown, tolerance, kinds)
    return _number(claim, numbers[0], estimates[0], shown, tolerance, kinds)


def _number(claim: Claim, number: Number, estimate: Estimate, shown: str, tolerance: str, kinds: Kinds) -> Line:
    interval = estimate.interval
    half = (interval.high - interval.low) / 2
    # The published number has noise too: as ours, at the rows that it was made from.
    theirs = half * math.sqrt(estimate.questions / number.rows) if number.rows else half
    noise = math.hypot(half, theirs)
    apart = abs(estimate.value - number.value)
    if claim.kind == "value":
        agrees = apart <= noise + claim.tolerance + _ROUNDING
        contradicts = apart > noise + claim.tolerance + _ROUNDING
        tolerance = f"± {noise + claim.tolerance:.2f} (noise {noise:.2f} + {claim.tolerance:g})"
    else:
        sign = math.copysign(1, number.value)
        nearest, farthest = sorted((sign * interval.low, sign * interval.high))
        agrees = sign * estimate.value > 0 and nearest >= -claim.tolerance - _ROUNDING
        contradicts = farthest < 0 or apart > noise + _ROUNDING
    return Line(
        claim=claim.claim,
        published=shown,
        reproduced=_text(estimate.value, signed=claim.kind == "direction"),
        interval=f"{_text(interval.low)} to {_text(interval.high)}",
        tolerance=tolerance,
        result=_result(agrees=agrees, contradicts=contradicts),
        kinds=kinds,
    )


def _order(
    claim: Claim, numbers: list[Number], estimates: list[Estimate], shown: str, tolerance: str, kinds: Kinds
) -> Line:
    import numpy as np

    values = np.array([estimate.value for estimate in estimates])
    resampled = np.stack([estimate.resamples for estimate in estimates], axis=1)
    expected = [number.value for number in numbers]
    rho = float(_correlations(expected, values[None])[0])
    interval = Estimate(rho, _correlations(expected, resampled), 0).interval
    order = _names(claim.runs, list(values)) if np.isfinite(values).all() else ""
    return Line(
        claim=claim.claim,
        published=shown,
        reproduced=f"rho {_text(rho, signed=True)}{': ' * bool(order)}{order}",
        interval=f"{_text(interval.low)} to {_text(interval.high)}",
        tolerance=tolerance,
        result=_result(
            agrees=rho >= claim.tolerance - _ROUNDING, contradicts=interval.high < claim.tolerance - _ROUNDING
        ),
        kinds=kinds,
    )


def _result(*, agrees: bool, contradicts: bool) -> Result:
    return "PASS" if agrees else "DIFFERS" if contradicts else "UNCLEAR"


def _correlations(expected: Sequence[float], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's rho of `expected` (n) with each row of `values` (resamples, n); NaN where all are equal."""
    import numpy as np

    def ranks(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        centred: NDArray[np.float64] = np.sign(rows[:, :, None] - rows[:, None, :]).sum(axis=2) / 2
        return centred

    first, second = ranks(np.array([expected])), ranks(values)
    with np.errstate(invalid="ignore"):
        scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
        return (first * second).sum(axis=1) / scale


def _published_text(claim: Claim, numbers: list[Number]) -> str:
    if claim.kind == "order":
        return _names(claim.runs, [number.value for number in numbers])
    (number,) = numbers
    signed = claim.kind == "direction"
    recomputed = f" ({_text(number.value, signed=signed)} recomputed)" if number.value != number.printed else ""
    return _text(number.printed, signed=signed) + recomputed


def _tolerance_text(claim: Claim) -> str:
    if claim.kind == "value":
        return f"noise + {claim.tolerance:g}"
    if claim.kind == "order":
        return f"rho at least {claim.tolerance:g}"
    return f"same sign, interval {claim.tolerance:g} past 0 at most" if claim.tolerance else "same sign, interval too"


def _names(runs: Sequence[str], values: Sequence[float]) -> str:
    """The runs from the highest value down, by what their names do not share."""
    parts = [run.split("_") for run in runs]
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False)))
    names = ["_".join(part[shared:]) or run for part, run in zip(parts, runs, strict=True)]
    ranked = sorted(range(len(runs)), key=lambda place: -values[place])
    return " > ".join(names[place] for place in ranked)


def _text(value: float, *, signed: bool = False) -> str:
    if not math.isfinite(value):
        return NOTHING
    text = f"{value:+.2f}" if signed else f"{value:.2f}"
    return text.lstrip("+-") if float(text) == 0 else text
