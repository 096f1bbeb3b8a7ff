"""Complete prompts in batches whose finished rows are replaced by prompts that wait.

A step takes the weights through memory once, whatever it computes with them: 4-bit layers are dequantised, layers in
host memory are copied. So as many rows as fit share a step, and a row that has ended makes room for the next prompt.
transformers' own continuous batching does this too, but it draws all tokens from one generator, and needs attention
kernels that the locks do not hold: without them every row attends over the keys of all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from pipeline.common.errors import UserError
from pipeline.models.finite import is_finite
from pipeline.models.tokenizer import pad_batch
from pipeline.sampling.kv_cache import RowCache

# (numbers of the prompts, numbers of the steps, scores (rows, vocabulary)) -> (rows,) token ids; the first two are
# tensors of one entry a row.
Choose = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# Prompts that wait are read once this share of the rows is free: reading costs as much as a step.
REFILL = 8


@dataclass(frozen=True, kw_only=True)
class Room:
    """How many rows are completed at once, how many columns they have, and how many prompt tokens are read at once."""

    rows: int
    columns: int
    prefill: int


@dataclass(kw_only=True)
class Row:
    """A place in the batch: the prompt that is being completed there, None where it is free; its first column."""

    prompt: int | None = None
    start: int = 0


@torch.inference_mode()
def generate(
    model: Any,
    prompts: list[list[int]],
    choose: Choose,
    length: int,
    ends: frozenset[int],
    pad: int,
    room: Room | None = None,
) -> list[list[int]]:
    """At most `length` tokens a prompt, up to the first of `ends`, each chosen by `choose` alone.

    room: None completes all prompts at once, in order, which gives the same bits for the same prompts wherever it is
    run on one kind of processor. Raises UserError where the model's logits are not finite.
    """
    # A base whose configuration asks for the router's auxiliary loss would compute it at every token, and fail at it
    # where rows are padded.
    model.config.output_router_logits = False
    if room is None:
        longest = max(map(len, prompts))
        room = Room(rows=len(prompts), columns=longest + length, prefill=len(prompts) * longest)
        order = list(range(len(prompts)))
    else:
        # Longest first: a prompt that comes later fits where an earlier one was.
        order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    if room.columns < max(map(len, prompts)) + length:
        raise ValueError(
            f"a prompt of {max(map(len, prompts))} tokens and its answer do not fit {room.columns} columns"
        )
    batch = _Batch(model, prompts, choose, length, ends, pad, room)
    while order or batch.active:
        free = batch.free
        if order and (len(free) * REFILL >= len(batch.rows) or not batch.active):
            batch.read(order[: len(free)])
            order = order[len(free) :]
        if batch.active:
            batch.step()
    return batch.answers


class _Batch:
    """The rows of a batch, and what they have said so far."""

    def __init__(
        self,
        model: Any,
        prompts: list[list[int]],
        choose: Choose,
        length: int,
        ends: frozenset[int],
        pad: int,
        room: Room,
    ) -> None:
        self.model, self.prompts, self.choose = model, prompts, choose
        self.length, self.ends, self.pad, self.room = length, ends, pad, room
        self.answers: list[list[int]] = [[] for _ in prompts]
        count = min(room.rows, len(prompts))
        self.rows = [Row() for _ in range(count)]
        self.cache = RowCache(model.config.num_hidden_layers, count, room.columns)
        self.mask = torch.zeros(count, room.columns, dtype=torch.long, device=model.device)
        self.token = torch.full((count, 1), pad, device=model.device)
        self.position = torch.zeros(count, 1, dtype=torch.long, device=model.device)

    @property
    def active(self) -> bool:
        """Whether any row has still something to say."""
        return any(row.prompt is not None for row in self.rows)

    @property
    def free(self) -> list[int]:
        """Rows that have nothing to say."""
        return [place for place, row in enumerate(self.rows) if row.prompt is None]

    def read(self, numbers: list[int]) -> None:
        """Put the prompts of these numbers into free rows, and choose their first tokens."""
        places = self.free[: len(numbers)]
        if not self.active:
            self.cache.start(max(len(self.prompts[number]) for number in numbers))
            self.mask.zero_()
        while numbers:
            # At least one; prompts that follow one another are about as long.
            count = max(1, self.room.prefill // len(self.prompts[numbers[0]]))
            self._read_together(places[:count], numbers[:count])
            places, numbers = places[count:], numbers[count:]

    def _read_together(self, places: list[int], numbers: list[int]) -> None:
        batch = pad_batch([self.prompts[number] for number in numbers], self.pad, "left")
        ids, mask = (tensor.to(self.model.device) for tensor in batch.values())
        position = (mask.cumsum(dim=-1) - 1).masked_fill(mask == 0, 0)
        prompts = DynamicCache()
        scores = self._forward(ids, None if bool(mask.all()) else mask, position, prompts)
        self.cache.put(places, prompts)
        end = self.cache.length
        self.mask[places] = 0
        self.mask[places, end - mask.shape[1] : end] = mask
        self.position[places] = position[:, -1:]
        for place, number in zip(places, numbers, strict=True):
            self.rows[place] = Row(prompt=number, start=end - len(self.prompts[number]))
        self._say(places, scores)

    def step(self) -> None:
        """One more token of every row; rows with nothing to say go along."""
        if self.cache.length == self.room.columns:
            self._forget()
        end = self.cache.length
        self.mask[:, end] = 1
        self.position += 1
        mask = self.mask[:, : end + 1]
        padded = any(row.start for row in self.rows)
        scores = self._forward(self.token, mask if padded else None, self.position, self.cache)
        places = [place for place, row in enumerate(self.rows) if row.prompt is not None]
        self._say(places, scores[places] if len(places) < len(self.rows) else scores)

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor | None, position: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """(rows, vocabulary) scores of the next tokens, in fp32."""
        found = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        scores: torch.Tensor = found.logits[:, -1].float()
        if not is_finite(scores):
            raise UserError(
                "the model's logits are not finite: its weights, or its adapter's, are damaged or diverged while they "
                "were trained; look at the run's loss.csv, and train it again."
            )
        return scores

    def _say(self, places: list[int], scores: torch.Tensor) -> None:
        """Choose the next token of these rows, and free those that have ended."""
        numbers = [self.rows[place].prompt for place in places]
        said = [self.answers[number] for number in numbers if number is not None]
        steps = torch.tensor([len(tokens) for tokens in said], device=scores.device)
        chosen = self.choose(torch.tensor(numbers, device=scores.device), steps, scores)
        self.token[places] = chosen[:, None]
        for place, tokens, token in zip(places, said, chosen.tolist(), strict=True):
            tokens.append(token)
            if token in self.ends or len(tokens) == self.length:
                self.rows[place].prompt = None
                self.token[place] = self.pad

    def _forget(self) -> None:
        """Drop the columns before the first that a row with something to say still needs."""
        columns = min(row.start for row in self.rows if row.prompt is not None)
        self.cache.drop(columns)
        self.mask[:, : self.cache.length] = self.mask[:, columns : columns + self.cache.length].clone()
        for row in self.rows:
            row.start = max(row.start - columns, 0)
