"""Base and fine-tuned model on the same tokens: the fine-tuned model's own answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.common.errors import UserError
from pipeline.common.rows import Verdict
from pipeline.data.prompts import Prompt
from pipeline.probing.directions import as_long, cosine, mean_differences, shuffled_contrasts
from pipeline.probing.interventions import Intervention
from pipeline.probing.knockout import parts_of
from pipeline.probing.reading import Reading, Text, read
from pipeline.probing.routing import routing_shift
from pipeline.probing.subject import Subject
from pipeline.results.definitions import Definition
from pipeline.results.halves import halves


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What a comparison found.

    routing: rows of `routing_shift`, with the suite. directions: (layers, hidden) each. shuffled: contrasts of shuffled
    labels, made as long as the contrast; chance: (permutations, layers), how long they are of themselves; neither where
    there is no contrast. alone: the shift of each of the adapter's parts kept alone. stream: (layers,) mean length of
    the base's residual stream, on the same texts.
    """

    routing: list[dict[str, Any]]
    directions: dict[str, torch.Tensor]
    shuffled: dict[str, torch.Tensor]
    chance: torch.Tensor
    alone: dict[str, torch.Tensor]
    stream: torch.Tensor

    def rows(self, added_at: int) -> list[dict[str, Any]]:
        """A row a layer and direction: its length, absolute and as a share of the stream's, and cosine with `shift`.

        chance_length, p_value: of the contrast, the mean length of those of shuffled labels, and the share of them that
        are at least as long (with the observed one: it is never 0).
        """
        named = {**self.directions, **{f"only {name}": it for name, it in self.alone.items()}}
        return [
            {
                "layer": layer,
                "direction": name,
                "length": float(vectors[layer].norm()),
                "share_of_stream": float(vectors[layer].norm() / self.stream[layer]),
                "cosine_with_shift": float(cosine(vectors, self.directions["shift"])[layer].nan_to_num(0.0)),
                "added_here": layer == added_at,
                **self._by_chance(name, layer),
            }
            for name, vectors in named.items()
            for layer in range(len(vectors))
        ]

    def _by_chance(self, name: str, layer: int) -> dict[str, float | None]:
        if name != "contrast":
            return {"chance_length": None, "p_value": None}
        lengths = self.chance[:, layer]
        longer = int((lengths >= (1 - 1e-5) * self.directions[name][layer].norm()).sum())
        return {"chance_length": float(lengths.mean()), "p_value": (1 + longer) / (1 + len(lengths))}


def compare(
    subject: Subject, prompts: Sequence[Prompt], whole: Sequence[Verdict], definition: Definition, tokens: int
) -> Compared:
    """Read the fine-tuned model's answers (`whole`: its verdicts on `prompts`) with its adapter, without, in parts."""
    assert subject.study.probing is not None
    settings = subject.study.probing
    texts, answered = _answered(subject, prompts, whole)
    held_out = _choosing(subject, prompts, answered)
    every = frozenset(subject.units)

    def reading(some: Sequence[Text], off: frozenset[Any]) -> Reading:
        return read(subject.loaded, some, Intervention(name="read", kind="read", off=off), tokens, subject.pad)

    base, tuned = reading(texts, every), reading(texts, frozenset())
    suites: dict[str, list[int]] = {}
    for place, (prompt, _) in enumerate(answered):
        suites.setdefault(prompt.suite, []).append(place)
    routing = [
        {"suite": suite, "texts": len(places), **row}
        for suite, places in suites.items()
        for row in routing_shift(
            _some(base, places),
            _some(tuned, places),
            subject.anatomy.experts,
            subject.anatomy.moe_layers,
            settings.permutations,
            subject.seed,
        )
    ]
    labels = [definition.label(answered[place][1]) for place in held_out]
    # Of each part these texts alone, and the base once more beside them: in the same batches, so that what a part
    # does not move does not differ by a bit.
    parts = parts_of(subject.units, settings.groups)
    some = [texts[place] for place in held_out]
    alone: dict[str, torch.Tensor] = {}
    if len(parts) > 1:
        bare = reading(some, every).streams
        alone = {name: (reading(some, every - own).streams - bare).mean(dim=0) for name, own in parts.items()}
    chosen = _some(tuned, held_out)
    found = mean_differences(_some(base, held_out), chosen, labels)
    shuffled, chance = torch.zeros(0), torch.zeros(0, subject.anatomy.layers)
    if "contrast" in found:
        asked_in = [answered[place][0].suite for place in held_out]
        count, keep = settings.permutations, settings.random
        shuffled, chance = shuffled_contrasts(chosen, labels, asked_in, count=count, keep=keep, seed=subject.seed)
    return Compared(
        routing=routing,
        directions=found,
        shuffled={f"shuffled {number}": as_long(it, found["contrast"]) for number, it in enumerate(shuffled)},
        chance=chance,
        alone=alone,
        stream=base.streams[held_out].norm(dim=-1).mean(dim=0),
    )


def _answered(
    subject: Subject, prompts: Sequence[Prompt], whole: Sequence[Verdict]
) -> tuple[list[Text], list[tuple[Prompt, Verdict]]]:
    """Every prompt that was answered, with its verdict, and both as tokens."""
    rows = {(row.suite, row.prompt_id): row for row in whole}
    pairs = [(it, rows[it.suite, it.prompt_id]) for it in prompts if rows[it.suite, it.prompt_id].answer]
    texts = subject.texts([it for it, _ in pairs], [row.answer for _, row in pairs])
    kept = [(text, pair) for text, pair in zip(texts, pairs, strict=True) if text.answer]
    return [text for text, _ in kept], [pair for _, pair in kept]


def _choosing(subject: Subject, prompts: Sequence[Prompt], answered: Sequence[tuple[Prompt, Verdict]]) -> list[int]:
    """Places of the answers that directions are taken from: those to the half of the held-out questions that chooses.

    What the directions do is reported on the other half. Raises UserError where there is none.
    """
    half = halves((it.suite, it.prompt_id) for it in prompts)
    found = [
        place
        for suite in subject.study.held_out
        for place, (it, _) in enumerate(answered)
        if it.suite == suite and half[suite, it.prompt_id] == "choose"
    ]
    if not found:
        raise UserError(
            f"{subject.run}, seed {subject.seed}: the fine-tuned model left every held-out question unanswered that "
            "directions are taken from; look at its answers, and take it out of probing.runs."
        )
    return found


def _some(reading: Reading, places: Sequence[int]) -> Reading:
    return Reading(
        streams=reading.streams[list(places)],
        chosen=tuple(reading.chosen[place] for place in places) if reading.chosen else (),
    )
