"""The transformers backend: left-padded batches, KV cache, the adapter applied to the base."""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.sampling.backend import Completion, Model, Request
from pipeline.sampling.chat import Chat
from pipeline.sampling.random_choice import choose, uniforms
from pipeline.sampling.settings import Sampling


class HuggingFace:
    """A base, with an adapter or without, that completes chats."""

    def __init__(self, model: Model, settings: Sampling) -> None:
        from pipeline.models.loading import load_frozen, training_device

        self._settings = settings
        self._chat = Chat(model.base.path, settings.system)
        self._model = load_frozen(model.base.path, model.precision, training_device(model.precision))
        if model.adapter is not None:
            from pipeline.models.adapters import load_adapter

            self._model = load_adapter(self._model, model.adapter)

    def complete(self, batches: Sequence[list[Request]]) -> Iterator[tuple[int, list[Completion]]]:
        """Each batch's place and its completions, in order."""
        for place, requests in enumerate(batches):
            yield place, self._complete(requests)

    def _complete(self, requests: list[Request]) -> list[Completion]:
        import torch

        settings, chat = self._settings, self._chat
        prompts = [chat.tokens(request.prompt) for request in requests]
        points = torch.from_numpy(uniforms([request.seed for request in requests], settings.max_new_tokens))

        def draw(step: int, scores: torch.Tensor) -> torch.Tensor:
            return choose(scores, points[:, step].to(scores.device), settings.temperature, settings.top_p)

        tokens = generate(self._model, prompts, draw, settings.max_new_tokens, chat.ends, chat.pad)
        return [chat.read(prompt, completion) for prompt, completion in zip(prompts, tokens, strict=True)]


def generate(
    model: Any, prompts: list[list[int]], draw: Any, length: int, ends: frozenset[int], pad: int
) -> list[list[int]]:
    """At most `length` tokens a prompt, each chosen by `draw(step, scores)`: (rows, vocabulary) -> (rows,).

    Rows that end before others are filled with `pad`. What the checkpoint recommends for decoding is not
    used: decoding is the study's.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)

    def choice(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = draw(input_ids.shape[1] - width, scores)
        return torch.full_like(scores, float("-inf")).scatter(-1, chosen[:, None], 0.0)

    # A base whose configuration asks for the router's auxiliary loss would compute it at every token, and fail at it
    # where rows are padded.
    model.config.output_router_logits = False
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends) or None, pad_token_id=pad)
    with torch.inference_mode():
        # Greedy over scores that leave one token: the choice is ours, the loop and the cache theirs.
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            logits_processor=LogitsProcessorList([choice]),
            do_sample=False,
            max_new_tokens=length,
        )
    return [list(row) for row in output[:, width:].tolist()]
