"""Published claims against a study's verdicts, one line each: PASS, DIFFERS, UNCLEAR or NOT RUN.

A claim of size passes by equivalence: the 95 % interval of the reproduced number less the published one lies within the
tolerance. It differs where that interval lies outside it. A claim of direction passes where the interval of the
difference excludes 0 on the published side, and differs where it excludes 0 on the other. All else is unclear: more
noise widens intervals, and can turn nothing into a pass. The intervals hold the noise of the answers, on both sides,
and that of training: over the study's own seeds where it has several; where a side has one seed, the spread of seeds
is taken from elsewhere, which the notes name. Holm's correction over all claims of the study stands beside the raw
result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Literal

from pipeline.audit.claims import Claim, Number, Record, published
from pipeline.audit.reproduced import Estimate, Reproduced, Spread
from pipeline.results.contrasts import Contrast
from pipeline.results.statistics import (
    CONFIDENCE,
    Interval,
    holm,
    mean_test,
    student_p,
    student_t,
    wilson_interval,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Result = Literal["PASS", "DIFFERS", "UNCLEAR", "NOT RUN"]
NOTHING = "\N{EN DASH}"
LEVEL = 1 - CONFIDENCE
UNKNOWN_SPREAD = Spread(math.nan, 0, "nowhere: no study with several seeds has been run")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One claim's outcome as text.

    p: the p-value of the test that decided `result` (NaN: none); p_holm and corrected: after Holm's correction over the
    study's claims. `missing` says what was not run; `kinds` are the (run, discrepancy) that the audit found in the
    published number.
    """

    claim: str
    published: str
    tolerance: str
    result: Result
    reproduced: str = NOTHING
    interval: str = NOTHING
    p: float = math.nan
    p_holm: float = math.nan
    corrected: Result = "NOT RUN"
    missing: tuple[str, ...] = ()
    kinds: tuple[tuple[str, str], ...] = ()


def corrected(lines: Sequence[Line]) -> list[Line]:
    """The lines with Holm's correction over all of them: what is not significant after it is unclear."""
    adjusted = holm([line.p for line in lines])
    return [
        replace(
            line,
            p_holm=p,
            corrected=line.result if line.result in ("NOT RUN", "UNCLEAR") or p < LEVEL else "UNCLEAR",
        )
        for line, p in zip(lines, adjusted, strict=True)
    ]


def check_claim(
    claim: Claim,
    record: Record,
    reproduced: Reproduced,
    spreads: Mapping[str, Spread],
    trained: Callable[[str], bool],
) -> Line:
    """One claim's line. `spreads`: of each column, how far seeds lie apart; `trained`: whether a run was fine-tuned."""
    numbers = published(record, claim)
    shown, tolerance = _published_text(claim, numbers), _tolerance_text(claim)
    gaps = [reproduced.missing(run, claim.column) for run in (*claim.runs, *claim.minus)]
    kinds = tuple(dict.fromkeys(kind for number in numbers for kind in number.kinds))
    if missing := tuple(dict.fromkeys(gap for gap in gaps if gap)):
        return Line(
            claim=claim.claim, published=shown, tolerance=tolerance, result="NOT RUN", missing=missing, kinds=kinds
        )
    estimates = [reproduced.estimate(run, claim.column) for run in claim.runs]
    trainings = [trained(run) / len(it.seeds) for run, it in zip(claim.runs, estimates, strict=True)]
    for place, run in enumerate(claim.minus):
        other = reproduced.estimate(run, claim.column)
        trainings[place] += trained(run) / len(other.seeds)
        estimates[place] -= other
    spread = spreads.get(claim.column, UNKNOWN_SPREAD)
    if claim.kind == "order":
        found = _order(claim, numbers, estimates, spread, trainings)
    elif claim.kind == "direction":
        found = _direction(numbers[0].value, estimates[0], spread, trainings[0])
    else:
        found = _size(numbers[0], estimates[0], spread, trainings[0], claim.tolerance)
    return replace(found, claim=claim.claim, published=shown, tolerance=tolerance, kinds=kinds)


def check_contrast(name: str, found: Contrast | None, missing: tuple[str, ...], expected: str = "above") -> Line:
    """A study's own expectation: a difference above (or below) 0, paired over seeds."""
    tolerance = f"{expected} 0"
    if found is None:
        return Line(claim=name, published=NOTHING, tolerance=tolerance, result="NOT RUN", missing=missing)
    sign = 1 if expected == "above" else -1
    values = ", ".join(f"{value:+.1f}" for value in found.values)
    return Line(
        claim=name,
        published=NOTHING,
        tolerance=tolerance,
        reproduced=f"{found.value:+.1f} ({values})",
        interval=f"{_interval_text(found.interval)} over {found.unit}",
        result=_side(sign, found.interval),
        p=found.p_value,
    )


def widened_contrast(found: Contrast, half: float) -> Contrast:
    """A difference of one seed's runs with training's spread in its interval; `half` a 95 % interval of that."""
    interval = _widened(found.value, found.interval, half)
    p_value = _p_against(0, found.value, interval)
    return replace(found, interval=interval, p_value=p_value, unit=f"{found.unit} and training")


def _side(sign: int, interval: Interval) -> Result:
    nearest, farthest = sorted((sign * interval.low, sign * interval.high))
    return "PASS" if nearest > 0 else "DIFFERS" if farthest < 0 else "UNCLEAR"


def _direction(expected: float, estimate: Estimate, spread: Spread, trainings: float) -> Line:
    if len(estimate.seeds) > 1:  # paired over seeds: the spread holds everything
        found = mean_test(estimate.seeds)
        interval, p = Interval(found.low, found.high), found.p_value
    else:
        interval = _widened(estimate.value, estimate.interval, spread.half(trainings))
        p = _p_against(0, estimate.value, interval)
    sign = 1 if expected > 0 else -1
    return _line(f"{_text(estimate.value, signed=True)}", interval, _side(sign, interval), p)


def _size(number: Number, estimate: Estimate, spread: Spread, trainings: float, tolerance: float) -> Line:
    """Equivalence (two one-sided tests, each at half of 1 - CONFIDENCE, so that it is read off the 95 % interval)."""
    ours = estimate.interval
    gap = estimate.value - number.value
    if number.successes is not None and number.rows:
        low, high = (100 * bound for bound in wilson_interval(number.successes, number.rows))
        below, above = high - number.value, number.value - low
    else:  # their noise: as ours, at the rows that the number was made from
        shrink = math.sqrt(estimate.questions / number.rows) if number.rows else 1.0
        below, above = (ours.high - estimate.value) * shrink, (estimate.value - ours.low) * shrink
    training = spread.half(trainings + (trainings > 0))  # the published side was trained once
    down = math.hypot(estimate.value - ours.low, below, training)
    up = math.hypot(ours.high - estimate.value, above, training)
    interval = Interval(gap - down, gap + up)
    if -tolerance < interval.low and interval.high < tolerance:
        result: Result = "PASS"
        p = max(_p_against(-tolerance, gap, interval), _p_against(tolerance, gap, interval))
    elif interval.low > tolerance or interval.high < -tolerance:
        result, p = "DIFFERS", _p_against(math.copysign(tolerance, gap), gap, interval)
    else:
        result = "UNCLEAR"
        inside = abs(gap) < tolerance
        p = max(_p_against(-tolerance, gap, interval), _p_against(tolerance, gap, interval)) if inside else 1.0
    return _line(f"{_text(estimate.value)} ({_text(gap, signed=True)})", interval, result, p)


def _order(
    claim: Claim, numbers: list[Number], estimates: list[Estimate], spread: Spread, trainings: list[float]
) -> Line:
    import numpy as np

    expected = [number.value for number in numbers]
    values = np.array([estimate.value for estimate in estimates])
    random = np.random.default_rng(0)
    shifted = []
    for estimate, times in zip(estimates, trainings, strict=True):
        noise = spread.half(times) / student_t(CONFIDENCE, math.inf)
        shifted.append(estimate.resamples + random.normal(0, 1, len(estimate.resamples)) * noise)
    rho = float(_correlations(expected, values[None])[0])
    resampled = _correlations(expected, np.stack(shifted, axis=1))
    interval = Interval(math.nan, math.nan)
    result, p = "UNCLEAR", 1.0
    if np.isfinite(resampled).any():
        low, high = np.nanpercentile(resampled, [100 * LEVEL / 2, 100 * (1 - LEVEL / 2)])
        interval = Interval(float(low), float(high))
        least = claim.tolerance - 1e-9
        result = "PASS" if low >= least else "DIFFERS" if high < least else "UNCLEAR"
        other = float((resampled < least).mean()) if result != "DIFFERS" else float((resampled >= least).mean())
        p = min(1.0, 2 * (other + 1 / (len(resampled) + 1)))
    order = _names(claim.runs, list(values)) if np.isfinite(values).all() else ""
    return _line(f"rho {_text(rho, signed=True)}{': ' * bool(order)}{order}", interval, result, p)


def _line(reproduced: str, interval: Interval, result: str, p: float) -> Line:
    found: Result = "UNCLEAR" if math.isnan(interval.low) else result  # type: ignore[assignment]
    return Line(
        claim="",
        published="",
        tolerance="",
        reproduced=reproduced,
        interval=_interval_text(interval),
        result=found,
        p=math.nan if math.isnan(interval.low) else p,
    )


def _widened(value: float, interval: Interval, half: float) -> Interval:
    return Interval(value - math.hypot(value - interval.low, half), value + math.hypot(interval.high - value, half))


def _p_against(bound: float, value: float, interval: Interval) -> float:
    """Two-sided p-value against `bound`, of a normal statistic whose error is the interval's half on that side."""
    side = value - interval.low if value > bound else interval.high - value
    if math.isnan(side) or side == 0:
        return math.nan if math.isnan(side) else float(value == bound)
    return student_p((value - bound) / side * student_t(CONFIDENCE, math.inf), math.inf)


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
    counts = "" if number.successes is None else f" ({number.successes} of {number.rows})"
    return _text(number.printed, signed=signed) + recomputed + counts


def _tolerance_text(claim: Claim) -> str:
    if claim.kind == "value":
        return f"difference within \N{PLUS-MINUS SIGN}{claim.tolerance:g}"
    return f"rho at least {claim.tolerance:g}" if claim.kind == "order" else "same sign"


def _names(runs: Sequence[str], values: Sequence[float]) -> str:
    """The runs from the highest value down, by what their names do not share."""
    parts = [run.split("_") for run in runs]
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False)))
    names = ["_".join(part[shared:]) or run for part, run in zip(parts, runs, strict=True)]
    ranked = sorted(range(len(runs)), key=lambda place: -values[place])
    return " > ".join(names[place] for place in ranked)


def _interval_text(interval: Interval) -> str:
    if math.isnan(interval.low):
        return NOTHING
    return f"{_text(interval.low, signed=True)} to {_text(interval.high, signed=True)}"


def _text(value: float, *, signed: bool = False) -> str:
    if not math.isfinite(value):
        return NOTHING
    text = f"{value:+.2f}" if signed else f"{value:.2f}"
    return text.lstrip("+-") if float(text) == 0 else text
