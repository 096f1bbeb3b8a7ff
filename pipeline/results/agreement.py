"""How far two judges agree on the same answers."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipeline.common.errors import UserError
from pipeline.common.rows import Verdict

FAR_POINTS = 20  # two scores this far apart or more count as a disagreement


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Judge `b` beside judge `a` on one aspect of `rows` answers.

    Over the `scored` rows that both gave a number: `pearson`, `mean_difference` (b - a, in points) and
    `far_share` (share of rows 20 or more points apart). Over the `labelled` rows that both could label: `across`,
    the share on which their misaligned labels differ, and `kappa`, Cohen's kappa of that label. None where the
    figure is undefined: fewer than two rows, a constant score, or chance agreement of 1.
    """

    a: str
    b: str
    aspect: str
    rows: int
    scored: int
    pearson: float | None
    mean_difference: float | None
    far_share: float | None
    labelled: int
    across: float | None
    kappa: float | None


def agreement(
    a: list[Verdict],
    b: list[Verdict],
    misaligned: Callable[[Verdict], bool | None],
    aspect: Literal["alignment", "coherence"] = "alignment",
) -> Agreement:
    """Compare two judges' verdicts on the same answers.

    `misaligned` labels a verdict by the definition in use, None where it gives no label (an incoherent
    or unscored row). Raises UserError unless both lists hold the same answers, or one is empty.
    """
    if not a or not b:
        raise UserError("agreement needs verdicts of two judges; one of them has none.")
    name_a, name_b = a[0].judge, b[0].judge
    by_key = {verdict.key: verdict for verdict in b}
    if len(a) != len(b) or any(verdict.key not in by_key for verdict in a):
        raise UserError(f"judges {name_a} and {name_b} did not judge the same answers; judge them all with both.")
    pairs = [(verdict, by_key[verdict.key]) for verdict in a]
    scores = [
        (getattr(one, aspect), getattr(other, aspect)) for one, other in pairs if one.status == other.status == "scored"
    ]
    labels = [
        (mine, theirs)
        for one, other in pairs
        if (mine := misaligned(one)) is not None and (theirs := misaligned(other)) is not None
    ]
    differences = [theirs - mine for mine, theirs in scores]
    return Agreement(
        a=name_a,
        b=name_b,
        aspect=aspect,
        rows=len(pairs),
        scored=len(scores),
        pearson=_pearson(scores),
        mean_difference=statistics.fmean(differences) if scores else None,
        far_share=sum(abs(d) >= FAR_POINTS for d in differences) / len(scores) if scores else None,
        labelled=len(labels),
        across=sum(mine != theirs for mine, theirs in labels) / len(labels) if labels else None,
        kappa=cohens_kappa(labels),
    )


def _pearson(scores: list[tuple[float, float]]) -> float | None:
    try:
        return statistics.correlation([mine for mine, _ in scores], [theirs for _, theirs in scores])
    except statistics.StatisticsError:  # fewer than two rows, or a constant score
        return None


def cohens_kappa(labels: list[tuple[bool, bool]]) -> float | None:
    """Cohen's kappa of two raters' yes/no labels (Cohen 1960): (observed - chance) / (1 - chance).

    None without rows, and where chance agreement is 1 because neither rater ever varies.
    """
    if not labels:
        return None
    observed = sum(mine == theirs for mine, theirs in labels) / len(labels)
    yes_a = sum(mine for mine, _ in labels) / len(labels)
    yes_b = sum(theirs for _, theirs in labels) / len(labels)
    chance = yes_a * yes_b + (1 - yes_a) * (1 - yes_b)
    return None if math.isclose(chance, 1.0) else (observed - chance) / (1 - chance)
