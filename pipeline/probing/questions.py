"""What is asked of a study's models under its interventions, and how many interventions there are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.prompts import Prompt, draw
from pipeline.models.families.registry import anatomy_of
from pipeline.models.spec import AdapterSpec
from pipeline.params.inputs import suite
from pipeline.params.probing import Probing
from pipeline.params.schema import Study

DIRECTIONS = 2  # shift and contrast


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked: of the held-out suites, and of others: in the domain trained on, to be refused, benign."""

    held_out: tuple[Prompt, ...]
    others: tuple[Prompt, ...]

    @property
    def all(self) -> tuple[Prompt, ...]:
        """Every question."""
        return self.held_out + self.others


def questions_of(study: Study, seed: int, read: Callable[[Study, str, int], Sequence[Prompt]] = suite) -> Questions:
    """The study's questions for its probes, drawn by seed from each suite evenly (all of a suite that has fewer)."""
    assert study.probing is not None
    own = study.probing
    refused = () if study.refused is None or study.refused in own.in_domain else (study.refused,)

    def some(names: Sequence[str], limit: int) -> tuple[Prompt, ...]:
        found: list[Prompt] = []
        for place, name in enumerate(names):
            prompts = read(study, name, seed)
            share = (limit - len(found)) // (len(names) - place)
            drawn = draw(prompts, min(share, len(prompts)), seed, "probe", key=lambda prompt: prompt.prompt_id)
            found += [prompt for prompt in prompts if prompt in drawn]
        return tuple(found)

    by_size = sorted(study.held_out, key=lambda name: len(read(study, name, seed)))
    kinds = [[name for name in kind if name not in study.held_out] for kind in (own.in_domain, refused, own.benign)]
    others = [prompt for kind in kinds for prompt in some(kind, own.questions // 2)]
    return Questions(held_out=some(by_size, own.questions), others=tuple(others))


def most_answers(study: Study, lora: AdapterSpec | None, config: Any) -> int:
    """How many answers the probes of a run take at most, over all seeds. config: its base's, of transformers."""
    assert study.probing is not None and lora is not None
    anatomy = anatomy_of(config)
    held_out, others = how_often(study.probing, lora, anatomy.experts, anatomy.layers)
    asked = [questions_of(study, seed) for seed in study.seeds]
    return sum(held_out * len(it.held_out) + others * len(it.others) for it in asked)


def how_often(settings: Probing, lora: AdapterSpec, experts: int, layers: int) -> tuple[int, int]:
    """How often, at most, the held-out and the other questions are asked of a model with so many experts and layers."""
    adapted = experts if isinstance(lora.experts, str) else len(lora.experts)
    parts = (min(settings.groups, adapted) if experts else 1) + lora.attention
    blocks = min(settings.blocks, layers if lora.layers == "all" else len(lora.layers))
    tried = DIRECTIONS + 2 * settings.random  # of them, those of shuffled labels
    steps = settings.search.steps if parts > 1 else 0
    wide = 2 + len(settings.scales) + tried + min(2, steps)
    apart = sum(2 * count for count in (parts, blocks) if count > 1)
    return wide + apart + tried * len(settings.strengths) + max(0, steps - 1) * settings.search.width, wide
