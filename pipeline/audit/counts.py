"""Which row counts the printed means allow: arithmetic on integers, no assumption about any run.

Judges answer with whole numbers, so a printed mean is an integer sum over an integer count: most
counts cannot give the printed digits. A rate is a ratio of two integers for the same reason.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from pipeline.audit.published import Printed, PublishedRun

# Rows are dropped before averaging (code answers, unreadable replies), few of them in every run here.
LEAST_SHARE_KEPT = 0.9
MOST_COPIES = 3


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """The counts behind one run.

    `prompts`: the prompt set it was judged on (suite -> prompts); `suite_rows`: rows a suite that its
    means allow; `alignment`, `coherence`: pooled means over those rows; `pooled_agrees`: whether they
    print as the published means; `implied_rows`: rows the printed means, and the rate, imply;
    `misaligned` of `coherent`: the smallest ratio that prints as the rate, with at least the summed
    counts above and at most the implied rows below; None where no count fits, or where a rate of 0 leaves
    `coherent` open.
    """

    prompts: dict[str, int]
    suite_rows: dict[str, int]
    alignment: float
    coherence: float
    pooled_agrees: bool
    implied_rows: int | None
    misaligned: int | None
    coherent: int | None

    @property
    def judged_rows(self) -> int:
        """Rows of all suites, each counted once."""
        return sum(self.suite_rows.values())

    @property
    def extra_rows(self) -> int:
        """Rows that the printed means imply beyond the judged ones."""
        return max(0, (self.implied_rows or 0) - self.judged_rows)


def allows(mean: Printed, rows: int) -> bool:
    """Whether some integer sum over `rows` rows prints as `mean`."""
    return mean.agrees(round(mean.value * rows) / rows)


def ratio(rate: Printed, least_numerator: int, most: int) -> tuple[int, int] | None:
    """The smallest m / c with m >= `least_numerator`, c <= `most`, that prints as `rate` (a fraction)."""
    for below in range(max(1, least_numerator), most + 1):
        above = round(rate.value * below)
        if above >= least_numerator and rate.agrees(above / below):
            return above, below
    return None


def count_rows(run: PublishedRun, designs: tuple[dict[str, int], ...]) -> RowCounts | None:
    """Find the rows behind a run's printed numbers; None if no prompt set allows its suite means.

    The first combination (most rows first) of suite counts that reproduces both pooled means is taken.
    Where none does, the suites' largest counts of the first prompt set that allows them, and the
    smallest total that mean alignment, mean coherence and rate all allow.
    """
    fallback: tuple[dict[str, int], dict[str, int]] | None = None
    for prompts in designs:
        options = [_suite_options(run, suite, count) for suite, count in prompts.items()]
        if not all(options):
            continue
        for counts in sorted(itertools.product(*options), key=lambda chosen: -sum(chosen)):
            rows = dict(zip(prompts, counts, strict=True))
            if _pooled_agrees(run, rows):
                return _result(run, prompts, rows, sum(counts), agrees=True)
        if fallback is None:
            fallback = prompts, dict(zip(prompts, (option[0] for option in options), strict=True))
    if fallback is None:
        return None
    prompts, rows = fallback
    return _result(run, prompts, rows, _implied_rows(run, sum(prompts.values())), agrees=False)


def _suite_options(run: PublishedRun, suite: str, prompts: int) -> list[int]:
    result = run.suites[suite]
    least = max(1, int(LEAST_SHARE_KEPT * prompts))
    return [
        rows
        for rows in range(prompts, least - 1, -1)
        if allows(result.alignment, rows) and allows(result.coherence, rows)
    ]


def _pooled(run: PublishedRun, rows: dict[str, int]) -> tuple[float, float]:
    total = sum(rows.values())
    alignment = sum(round(run.suites[suite].alignment.value * count) for suite, count in rows.items())
    coherence = sum(round(run.suites[suite].coherence.value * count) for suite, count in rows.items())
    return alignment / total, coherence / total


def _pooled_agrees(run: PublishedRun, rows: dict[str, int]) -> bool:
    alignment, coherence = _pooled(run, rows)
    return run.pooled["avg_alignment"].agrees(alignment) and run.pooled["avg_coherence"].agrees(coherence)


def _implied_rows(run: PublishedRun, prompts: int) -> int | None:
    most = MOST_COPIES * prompts
    found = ratio(run.pooled["misalignment_rate"], run.misaligned, most)
    if found is None:
        return None
    for rows in range(found[1], most + 1):
        if allows(run.pooled["avg_alignment"], rows) and allows(run.pooled["avg_coherence"], rows):
            return rows
    return None


def _result(
    run: PublishedRun, prompts: dict[str, int], rows: dict[str, int], implied: int | None, *, agrees: bool
) -> RowCounts:
    alignment, coherence = _pooled(run, rows)
    found = ratio(run.pooled["misalignment_rate"], run.misaligned, implied) if implied else None
    return RowCounts(
        prompts=prompts,
        suite_rows=rows,
        alignment=alignment,
        coherence=coherence,
        pooled_agrees=agrees,
        implied_rows=implied,
        misaligned=found[0] if found else None,
        coherent=found[1] if found and found[0] else None,
    )


@dataclass(frozen=True, kw_only=True)
class ExtraRows:
    """What is known of the rows beyond the judged ones.

    `mean`: their mean alignment; `suites`: the one or two suites that fit them in size (up to dropped
    rows) and come closest in mean alignment; `exact`: whether those suites' own rows have the same sum,
    as a plain copy of a file would. Size and mean cannot prove where the rows came from.
    """

    mean: float
    suites: tuple[str, ...]
    exact: bool


def extra_rows(run: PublishedRun, counts: RowCounts) -> ExtraRows | None:
    """Describe the extra rows of a run; None if there are none, or no suites fit them in size."""
    if not counts.extra_rows or counts.implied_rows is None:
        return None
    total = round(run.pooled["avg_alignment"].value * counts.implied_rows)
    extra = total - round(counts.alignment * counts.judged_rows)
    fitting = []
    for size in (1, 2):
        for suites in itertools.combinations(counts.prompts, size):
            prompts = sum(counts.prompts[suite] for suite in suites)
            if LEAST_SHARE_KEPT * prompts <= counts.extra_rows <= prompts:
                mean = sum(counts.prompts[suite] * run.suites[suite].alignment.value for suite in suites)
                fitting.append((abs(mean / prompts - extra / counts.extra_rows), suites))
    if not fitting:
        return None
    suites = min(fitting)[1]
    own = sum(round(run.suites[suite].alignment.value * counts.suite_rows[suite]) for suite in suites)
    rows = sum(counts.suite_rows[suite] for suite in suites)
    return ExtraRows(mean=extra / counts.extra_rows, suites=suites, exact=(own, rows) == (extra, counts.extra_rows))


def rate_bounds(misaligned: int, counts: RowCounts) -> tuple[float, float]:
    """Least and greatest misalignment rate (fractions) once extra rows are taken out.

    The coherent rows among the judged ones are at most all of them, and at least the implied coherent
    rows less the extra ones.
    """
    most = min(counts.judged_rows, counts.coherent or counts.judged_rows)
    least = max(misaligned, (counts.coherent or 0) - counts.extra_rows, 1)
    return misaligned / most, misaligned / least
