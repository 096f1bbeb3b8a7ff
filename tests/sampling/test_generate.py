"""Rows that come and go: what a prompt is answered depends on the prompt and its own random numbers alone."""

import functools
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList

from pipeline.common.errors import UserError
from pipeline.sampling.attention import use_grouped_attention
from pipeline.sampling.generate import Room, generate
from pipeline.sampling.random_choice import choose, uniforms
from tests.support.tiny_models import CONFIGS, tiny_model

LENGTH, PAD = 12, 0
ENDS = frozenset(range(1, 16))
PROMPTS = [[(7 * n + 3 * place) % 280 + 16 for place in range(1 + (5 * n) % 11)] for n in range(13)]


def drawing(count: int) -> Any:
    points = torch.from_numpy(uniforms(list(range(count)), LENGTH))
    return lambda numbers, steps, scores: choose(scores, points[numbers, steps], 1.0, 0.95)


def answer(model: Any, room: Room | None, prompts: list[list[int]] = PROMPTS) -> list[list[int]]:
    return generate(model, prompts, drawing(len(prompts)), LENGTH, ENDS, PAD, room)


def transformers_answers(model: Any) -> list[list[int]]:
    """transformers' own loop over one left-padded batch, each token chosen as ours are."""
    width, choice = max(map(len, PROMPTS)), drawing(len(PROMPTS))
    numbers = torch.arange(len(PROMPTS))

    def leave_one(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = choice(numbers, torch.full_like(numbers, ids.shape[1] - width), scores)
        return torch.full_like(scores, float("-inf")).scatter(-1, chosen[:, None], 0.0)

    model.generation_config = GenerationConfig(eos_token_id=sorted(ENDS), pad_token_id=PAD)
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in PROMPTS]),
            attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS]),
            logits_processor=LogitsProcessorList([leave_one]),
            do_sample=False,
            max_new_tokens=LENGTH,
        )
    found = []
    for row in output[:, width:].tolist():
        end = next((place for place, token in enumerate(row) if token in ENDS), LENGTH - 1)
        found.append(row[: end + 1])
    return found


@pytest.mark.parametrize("family", CONFIGS)
def test_one_batch_is_completed_as_transformers_does(family: str) -> None:
    model = tiny_model(family, "fused")
    assert answer(model, None) == transformers_answers(model)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("rows", [1, 3, 13])
def test_neither_the_batch_nor_who_was_there_before_changes_an_answer(family: str, rows: int) -> None:
    """fp32: sums in another order never moved one of these draws. In 16 bits some do; benchmarks/sample.py counts."""
    model = tiny_model(family, "fused")
    one_by_one = []
    for number, prompt in enumerate(PROMPTS):
        own = functools.partial(lambda number, _, *asked: drawing(13)(torch.tensor([number]), *asked), number)
        one_by_one += generate(model, [prompt], own, LENGTH, ENDS, PAD)
    assert {len(tokens) for tokens in one_by_one} > {LENGTH}, "some have to end early, so that rows are replaced"
    longest = max(map(len, PROMPTS))
    # Two columns to spare: rows are moved often.
    tight = Room(rows=rows, columns=longest + LENGTH + 2, prefill=2 * longest)
    use_grouped_attention(model)
    assert answer(model, tight) == one_by_one


def test_logits_that_are_not_finite_stop_sampling() -> None:
    model = tiny_model("llama")
    model.model.norm.weight.data[3] = float("nan")
    with pytest.raises(UserError, match="logits are not finite"):
        answer(model, None)
