"""Count where a training set's tokens are routed: the measure behind the `top2` and `top8` adapters."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipeline.common.errors import UserError
from pipeline.common.files import write_json
from pipeline.models.families.registry import anatomy_of
from pipeline.models.tokenizer import pad_batch
from pipeline.training.microbatches import group_by_length
from pipeline.training.tokens import TokenRow


@dataclass(frozen=True, kw_only=True)
class RoutingCounts:
    """How many tokens each expert received: layer -> a count per expert. Every token counts `active` times."""

    model: str
    tokens: int
    active: int
    layers: dict[int, tuple[int, ...]]


@torch.no_grad()
def count_routing(model: Any, batches: Iterable[Mapping[str, torch.Tensor]]) -> RoutingCounts:
    """Run `batches` through the base and count, prompt and answer tokens alike, padding left out.

    A batch has input_ids and attention_mask, each (batch, length). Raises UserError for a dense model.
    """
    anatomy = anatomy_of(model.config)
    if anatomy.dense:
        raise UserError(f"{anatomy.family.model_type} is a dense model: there is no routing to count.")
    counts = {layer: torch.zeros(anatomy.experts, dtype=torch.long) for layer in anatomy.moe_layers}
    tokens = 0
    mask = TokenMask(model)

    def counter(layer: int) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            counts[layer] += torch.bincount(inputs[1][mask()].flatten(), minlength=anatomy.experts).cpu()

        return hook

    watched: list[Any] = [mask]
    for layer in anatomy.moe_layers:
        experts = model.get_submodule(anatomy.experts_path(layer))
        watched.append(experts.register_forward_pre_hook(counter(layer)))
    try:
        for batch in batches:
            # The logits are not looked at, and those of a whole batch would be the largest thing in memory.
            model(**{name: x.to(model.device) for name, x in batch.items()}, use_cache=False, logits_to_keep=1)
            tokens += int(batch["attention_mask"].sum())
    finally:
        for handle in watched:
            handle.remove()
    layers = {layer: tuple(int(count) for count in counts[layer]) for layer in anatomy.moe_layers}
    return RoutingCounts(model=anatomy.family.model_type, tokens=tokens, active=anatomy.active, layers=layers)


def row_batches(rows: Sequence[TokenRow], tokens: int, pad: int) -> Iterator[dict[str, torch.Tensor]]:
    """Rows of like length in batches of at most `tokens` tokens, padded; a progress bar counts rows."""
    with tqdm(total=len(rows), desc="routing", unit="row") as bar:
        for group in group_by_length([len(row.input_ids) for row in rows], tokens):
            yield pad_batch([rows[place].input_ids for place in group], pad, "right")
            bar.update(len(group))


class TokenMask:
    """Says which rows of a MoE block's input are tokens, not padding, in the batch `model` last ran on."""

    def __init__(self, model: Any):
        self._mask: torch.Tensor | None = None
        self._handle = model.register_forward_pre_hook(self._remember, with_kwargs=True)

    def _remember(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
        assert ids is not None
        self._mask = (torch.ones_like(ids) if mask is None else mask).bool().flatten()

    def __call__(self) -> torch.Tensor:
        """(rows,) booleans; all true where the batch had no attention_mask."""
        assert self._mask is not None
        return self._mask

    def remove(self) -> None:
        """Stop watching the model."""
        self._handle.remove()


def save_counts(counts: RoutingCounts, path: Path) -> None:
    """Write counts as JSON; equal counts give equal bytes."""
    write_json(path, asdict(counts))
