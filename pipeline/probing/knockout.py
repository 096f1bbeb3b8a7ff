"""Which parts of an adapter are switched off, and which are kept alone: parts, groups of experts, blocks of layers."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

from pipeline.probing.interventions import ATTENTION, BLOCK, Intervention, Part, Unit

Item = TypeVar("Item")
WHOLE, BASE = "whole", "base"


def first_round(units: Sequence[Unit], groups: int, blocks: int) -> list[Intervention]:
    """The fine-tuned model and its base; then every part and every block of layers, switched off and kept alone."""
    every = frozenset(units)
    made = [Intervention(name=WHOLE, kind=WHOLE), Intervention(name=BASE, kind=BASE, off=every)]
    for kind, those in (("part", parts_of(units, groups)), ("layers", blocks_of(units, blocks))):
        # With one part there is nothing to tell apart: without it is the base, and it alone is the whole.
        for name, own in those.items() if len(those) > 1 else ():
            made.append(Intervention(name=f"without {name}", kind=f"without {kind}", what=name, off=own))
            made.append(Intervention(name=f"only {name}", kind=f"only {kind}", what=name, off=every - own))
    return made


def remedies(scales: Sequence[float]) -> list[Intervention]:
    """The adapter at a part of its strength."""
    return [Intervention(name=f"adapter x {scale:g}", kind="scale", strength=scale, scale=scale) for scale in scales]


def parts_of(units: Sequence[Unit], groups: int) -> dict[str, frozenset[Unit]]:
    """The adapter's parts by name, each over all layers: experts (in at most `groups` groups), attention, the block."""
    experts = sorted({part for _, part in units if isinstance(part, int)})
    parts: dict[str, set[Part]] = {_label("expert", some): set(some) for some in _split(experts, groups)}
    parts |= {str(name): {name} for name in (ATTENTION, BLOCK) if any(part == name for _, part in units)}
    return {name: frozenset(unit for unit in units if unit[1] in own) for name, own in parts.items()}


def blocks_of(units: Sequence[Unit], blocks: int) -> dict[str, frozenset[Unit]]:
    """The adapter's layers in at most `blocks` blocks of neighbours, by name."""
    layers = sorted({layer for layer, _ in units})
    return {
        _label("layer", some): frozenset(unit for unit in units if unit[0] in some) for some in _split(layers, blocks)
    }


def search_step(
    step: int, off: frozenset[Unit], known: Sequence[str], parts: Mapping[str, frozenset[Unit]], tried: Sequence[str]
) -> list[Intervention]:
    """What a step of the greedy search tries: each of the parts `tried` off besides those that are `known` to be."""
    return [
        Intervention(
            name=f"step {step}: without {', '.join([*known, name])}",
            kind="search",
            what=name,
            strength=float(step),
            off=off | parts[name],
        )
        for name in tried
    ]


def found(parts: Mapping[str, frozenset[Unit]], names: Sequence[str]) -> list[Intervention]:
    """The first of the parts that a search found, off by itself, and all of them off; none where it found none."""
    made = []
    for count in sorted({1, len(names)} if names else ()):
        off = frozenset().union(*(parts[name] for name in names[:count]))
        what = ", ".join(names[:count])
        name = f"greedy: {count} part{'s' if count > 1 else ''} off"
        made.append(Intervention(name=name, kind="found", what=what, strength=float(count), off=off))
    return made


def _split(items: Sequence[Item], most: int) -> Iterator[Sequence[Item]]:
    """At most `most` runs of neighbours, as long as one another but for one item."""
    count = min(most, len(items))
    ends = [len(items) * place // count for place in range(count + 1)] if count else []
    for begin, end in pairwise(ends):
        yield items[begin:end]


def _label(what: str, some: Sequence[object]) -> str:
    return f"{what} {some[0]}" if len(some) == 1 else f"{what}s {some[0]}-{some[-1]}"
