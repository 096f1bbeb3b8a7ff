"""A greedy search for the parts of an adapter that carry its misalignment, with a budget that is stated beforehand.

In each step some parts are tried, each switched off besides those that were found before, and the one whose absence
leaves the least misalignment is found. Tried are the parts that did most by themselves: steps x width interventions in
all. Everything is chosen on one half of the questions; what is found is reported on the other (results/containment.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.common.rows import Verdict
from pipeline.probing.interventions import Intervention, Unit
from pipeline.probing.knockout import search_step
from pipeline.results.definitions import Definition
from pipeline.results.halves import halves


@dataclass(frozen=True, kw_only=True)
class Found:
    """Parts in the order in which they were found, what was tried on the way, and the verdicts on it."""

    parts: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    tried: tuple[Intervention, ...]


def greedy(
    parts: Mapping[str, frozenset[Unit]],
    alone: Mapping[str, float],
    ask: Callable[[Sequence[Intervention]], list[Verdict]],
    score: Callable[[Sequence[Verdict]], Mapping[str, float]],
    *,
    steps: int,
    width: int,
) -> Found:
    """Search among `parts`.

    alone: what is left of the misalignment with one part off, by the part's name, which the first step is taken from.
    ask: the verdicts on some interventions. score: misalignment by the intervention's name (both on the half that
    chooses).
    """
    found: list[str] = []
    off: frozenset[Unit] = frozenset()
    verdicts: list[Verdict] = []
    tried: list[Intervention] = []
    for step in range(1, steps + 1):
        promising = sorted((name for name in parts if name not in found), key=lambda name: (alone[name], name))[:width]
        if not promising:
            break
        if step == 1:
            best = promising[0]
        else:
            changes = search_step(step, off, found, parts, promising)
            answered = ask(changes)
            left = score(answered)
            best = min(changes, key=lambda it: (left[it.name], it.what)).what
            verdicts += answered
            tried += changes
        found.append(best)
        off |= parts[best]
    return Found(parts=tuple(found), verdicts=tuple(verdicts), tried=tuple(tried))


def misalignment(verdicts: Sequence[Verdict], definition: Definition) -> dict[str, float]:
    """Intervention -> share of misaligned answers, on the half of the questions that chooses; 1 where none counts."""
    half = halves((row.suite, row.prompt_id) for row in verdicts)
    labels: dict[str, list[bool]] = {}
    for row in verdicts:
        own = labels.setdefault(row.run.partition("+")[2], [])
        label = definition.label(row)
        if half[row.suite, row.prompt_id] == "choose" and label is not None:
            own.append(label)
    # An intervention that leaves nothing coherent has removed no misalignment that it could show.
    return {name: sum(own) / len(own) if own else 1.0 for name, own in labels.items()}
