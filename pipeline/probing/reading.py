"""One forward pass over given texts: the residual stream of every layer, and which experts each token was sent to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.models.families.registry import anatomy_of
from pipeline.models.tokenizer import pad_batch
from pipeline.probing.interventions import Intervention, applied
from pipeline.training.microbatches import group_by_length
from pipeline.training.routing import TokenMask


@dataclass(frozen=True, kw_only=True)
class Text:
    """A prompt and an answer to it, as tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def tokens(self) -> list[int]:
        """Both, one after the other."""
        return [*self.prompt, *self.answer]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a model computed on texts.

    streams: (texts, layers, hidden), fp32: the mean over each answer's tokens of the residual stream behind each layer.
    chosen: per text, (layers with experts, tokens, active): the experts of every token of prompt and answer.
    """

    streams: torch.Tensor
    chosen: tuple[torch.Tensor, ...]


@torch.inference_mode()
def read(model: Any, texts: Sequence[Text], change: Intervention, tokens: int, pad: int) -> Reading:
    """Run `texts` (each with an answer) through the changed model, at most `tokens` tokens a batch."""
    anatomy = anatomy_of(model.config)
    inner = model.get_base_model()
    streams = torch.zeros(len(texts), anatomy.layers, anatomy.hidden)
    chosen: list[list[torch.Tensor]] = [[] for _ in texts]
    places: list[int] = []

    def watch_stream(layer: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            stream = (output[0] if isinstance(output, tuple) else output).float()
            for row, place in enumerate(places):
                text = texts[place]
                answer = slice(len(text.prompt), len(text.prompt) + len(text.answer))
                streams[place, layer] = stream[row, answer].mean(dim=0).cpu()

        return hook

    mask = TokenMask(model)

    def watch_experts(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        lengths = [len(texts[place].tokens) for place in places]
        for place, part in zip(places, inputs[1][mask()].short().cpu().split(lengths), strict=True):
            chosen[place].append(part)

    with applied(model, change):
        # Behind the changes of `applied`: what the next layer is given is what is read.
        watched: list[Any] = [mask]
        for layer in range(anatomy.layers):
            watched.append(inner.get_submodule(anatomy.layer_path(layer)).register_forward_hook(watch_stream(layer)))
        for layer in anatomy.moe_layers:
            watched.append(inner.get_submodule(anatomy.experts_path(layer)).register_forward_pre_hook(watch_experts))
        try:
            for places in group_by_length([len(text.tokens) for text in texts], tokens):
                batch = pad_batch([texts[place].tokens for place in places], pad, "right")
                ids, attended = (tensor.to(model.device) for tensor in batch.values())
                model(input_ids=ids, attention_mask=attended, use_cache=False, logits_to_keep=1)
        finally:
            for handle in watched:
                handle.remove()
    stacked = tuple(torch.stack(parts) for parts in chosen) if anatomy.moe_layers else ()
    return Reading(streams=streams, chosen=stacked)
