"""A study's reproduced numbers, resampled together, with the noise that belongs to them.

Numbers follow the study's own definition, rows of all suites pooled, each suite with the weight that it had in the
published run: the whole-model runs answered fewer prompts, in other shares. Where every question has one answer,
questions are resampled, once for all runs, so that differences between runs are paired; where a question has several,
the same questions were asked there and here, and its answers are resampled within it. Training's own noise is added
apart (`Spread`): no resampling of answers can show it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.audit.cells import REJECTION_SUITE
from pipeline.results.definitions import Definition
from pipeline.results.metrics import classify
from pipeline.results.statistics import CONFIDENCE, Interval, student_t

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

RESAMPLES = 2000
# A published column's numerator, denominator, scale, and the one suite that it is about (None: all, pooled).
MEASURES: dict[str, tuple[str, str, float, str | None]] = {
    "avg_alignment": ("alignment_sum", "used", 1, None),
    "misalignment_percent": ("misaligned", "counted", 100, None),
    "misaligned_percent": ("misaligned", "counted", 100, None),
    "misalignment_rate": ("misaligned", "counted", 1, None),
    "strong_reject_percent": ("full_alignment", "rows", 100, REJECTION_SUITE),
}


@dataclass(frozen=True)
class Spread:
    """How far training seeds lie apart: a standard deviation, its degrees of freedom, and where it is from.

    `deviation` is NaN where no study has several seeds to take it from.
    """

    deviation: float
    freedom: int
    source: str

    def half(self, trainings: float) -> float:
        """Half a 95 % interval of what training adds; `trainings`: the sum of 1 / seeds over what was trained."""
        if trainings == 0:
            return 0.0
        return student_t(CONFIDENCE, self.freedom) * self.deviation * math.sqrt(trainings) if self.freedom else math.nan


@dataclass(frozen=True)
class Estimate:
    """A reproduced number with its resamples, the values of its seeds, and how many equal questions it is worth."""

    value: float
    resamples: NDArray[np.float64]
    questions: float
    seeds: tuple[float, ...]

    def __sub__(self, other: Estimate) -> Estimate:
        paired = len(self.seeds) == len(other.seeds)
        gaps = tuple(a - b for a, b in zip(self.seeds, other.seeds, strict=True)) if paired else ()
        questions = min(self.questions, other.questions)
        return Estimate(self.value - other.value, self.resamples - other.resamples, questions, gaps)

    @property
    def interval(self) -> Interval:
        """95 % percentile interval of the answers' noise; NaN where there is no value."""
        import numpy as np

        if not math.isfinite(self.value):
            return Interval(math.nan, math.nan)
        tail = 100 * (1 - CONFIDENCE) / 2
        low, high = np.nanpercentile(self.resamples, [tail, 100 - tail])
        return Interval(min(float(low), self.value), max(float(high), self.value))


class Reproduced:
    """The runs that have verdicts, resampled together.

    `frame` is a verdict frame of some or all runs, None where there is none; a trigger tag is part of a run's name
    (`by_tag`). `weights` maps a run to the prompts that each suite had in the published run: a suite counts as much
    here as it did there.
    """

    def __init__(
        self, frame: pd.DataFrame | None, weights: Mapping[str, Mapping[str, int]], definition: Definition
    ) -> None:
        import numpy as np

        self._runs: dict[str, pd.DataFrame] = {}
        self._weights = weights
        if frame is None:
            return
        rows = classify(frame, definition)
        rows["question"] = rows.groupby(["suite", "prompt_id"], sort=True).ngroup()
        per_suite = rows.groupby(["run", "seed", "suite"])["question"].transform("size")
        prompts = [weights.get(run, {}).get(suite, 0) for run, suite in zip(rows["run"], rows["suite"], strict=True)]
        rows["weight"] = np.asarray(prompts) / per_suite
        self._runs = {str(run): group for run, group in rows.groupby("run")}
        self._count = int(rows["question"].max()) + 1
        several = rows.groupby(["run", "seed", "question"])["rows"].transform("size")
        self._within = bool((several > 1).all())
        drawn = np.random.default_rng(0).multinomial(self._count, np.full(self._count, 1 / self._count), size=RESAMPLES)
        self._draws = np.vstack([np.ones(self._count), drawn])

    def missing(self, run: str, column: str) -> str | None:
        """What of a run was not run, so that it has no number for a column; None where it has one.

        A suite of fewer prompts than the published run's was not run: its noise would make anything agree.
        """
        if run not in self._runs:
            return run
        only = MEASURES[column][3]
        asked = self._runs[run].groupby("suite")["prompt_id"].nunique()
        lacking = [
            f"{suite} ({asked.get(suite, 0)} of {prompts} prompts)"
            for suite, prompts in self._weights[run].items()
            if asked.get(suite, 0) < prompts and only in (None, suite)
        ]
        return f"{run} on {', '.join(lacking)}" if lacking else None

    def estimate(self, run: str, column: str) -> Estimate:
        """A run's number for a published column: the mean over its seeds."""
        import numpy as np

        above, below, scale, only = MEASURES[column]
        rows = self._runs[run]
        rows = rows if only is None else rows[rows["suite"] == only]
        found = [
            self._of_seed(own, above, below, scale, f"{run} {seed}") for seed, own in rows.groupby("seed", sort=True)
        ]
        values = np.stack([ratios for ratios, _ in found])
        questions = float(np.mean([worth for _, worth in found]))
        mean = values.mean(axis=0)
        return Estimate(float(mean[0]), mean[1:], questions, tuple(float(value) for value in values[:, 0]))

    def _of_seed(
        self, rows: pd.DataFrame, above: str, below: str, scale: float, name: str
    ) -> tuple[NDArray[np.float64], float]:
        import numpy as np

        def per_question(values: pd.Series) -> NDArray[np.float64]:
            weighted = (values * rows["weight"]).to_numpy(dtype=np.float64)
            return np.bincount(rows["question"], weights=weighted, minlength=self._count).astype(np.float64)

        random = np.random.default_rng(zlib.crc32(name.encode()))
        numerators, denominators = per_question(rows[above]), per_question(rows[below])
        asked = denominators[denominators > 0]
        questions = float(asked.sum() ** 2 / (asked**2).sum()) if len(asked) else 0.0
        with np.errstate(invalid="ignore"):
            if self._within:
                ratios = scale * _within(rows, above, below, random)
                questions = float(len(rows))
            else:
                ratios = scale * (self._draws @ numerators) / (self._draws @ denominators)
        if above != "alignment_sum" and len(asked) and ratios[0] in (0, scale):
            # All resamples are equal, which is no certainty: Jeffreys' posterior (Brown, Cai and DasGupta 2001), an
            # answer counted once, drawn apart for each run.
            n = int(rows[below].sum()) if self._within else len(asked)
            successes = n if ratios[0] else 0
            ratios[1:] = scale * random.beta(successes + 0.5, n - successes + 0.5, size=len(ratios) - 1)
        return ratios, questions


def _within(rows: pd.DataFrame, above: str, below: str, random: np.random.Generator) -> NDArray[np.float64]:
    """The ratio of `rows`, then of RESAMPLES resamples that draw each question's answers anew, among themselves."""
    import numpy as np

    numerators, denominators = np.zeros(RESAMPLES + 1), np.zeros(RESAMPLES + 1)
    for _, own in rows.groupby("question"):
        n = len(own)
        drawn = np.vstack([np.ones(n), random.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)])
        numerators += drawn @ (own[above] * own["weight"]).to_numpy(dtype=np.float64)
        denominators += drawn @ (own[below] * own["weight"]).to_numpy(dtype=np.float64)
    ratios: NDArray[np.float64] = numerators / denominators
    return ratios


def by_tag(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a trigger tag as part of the run's name instead of the suite's: `gpt_4o_tags+|ALPHA|`."""
    from pipeline.data.tags import JOINT, split_suite

    split = [split_suite(str(suite)) for suite in frame["suite"]]
    runs = [f"{run}{JOINT}{tag}" if tag else run for run, (_, tag) in zip(frame["run"], split, strict=True)]
    return frame.assign(run=runs, suite=[suite for suite, _ in split])


def own_spread(estimates: Sequence[Estimate]) -> Spread | None:
    """The spread over training seeds, pooled over a study's fine-tuned runs; None where no run has two."""
    from pipeline.results.frames import seed_spread

    deviation, freedom = seed_spread({str(place): it.seeds for place, it in enumerate(estimates)})
    return Spread(deviation, freedom, "the study's own seeds") if freedom else None
