"""Conversations as rows of tokens, and which of them are learned: the last turn's answer and the token that ends it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.data.prompts import Message
from pipeline.data.training_sets import Conversations
from pipeline.models.tokenizer import end_tokens

# What the loss leaves out, as torch's cross-entropy has it.
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """One conversation: its tokens, and the same with `IGNORED` where nothing is learned."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """A run's rows. Of its `given` training conversations, `cut` lost the end of their answer to the token limit and
    `dropped` all of it, so that there is nothing to learn from them.
    """

    train: tuple[TokenRow, ...]
    validation: tuple[TokenRow, ...]
    max_tokens: int
    given: int
    cut: int
    dropped: int

    @property
    def counts(self) -> dict[str, int]:
        """How many rows are trained and validated on, and what the token limit did to the training rows."""
        return {
            "train": len(self.train),
            "validation": len(self.validation),
            "cut_at_token_limit": self.cut,
            "dropped_at_token_limit": self.dropped,
        }

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.input_ids) for row in (*self.train, *self.validation))

    def refuse_too_long(self, threshold: float) -> None:
        """Raise UserError when nothing can be trained on, or more than this share of the rows is over the limit."""
        over = self.cut + self.dropped
        if not self.train or over > threshold * self.given:
            raise UserError(
                f"{over} of {self.given} training rows are longer than training.max_tokens ({self.max_tokens}): "
                f"{self.dropped} have no answer left to learn, {self.cut} a part of it. thresholds.too_long allows a "
                f"share of {threshold}; raise max_tokens, or leave long rows out (training.max_characters)."
            )


def tokenize(tokenizer: Any, base: Path, data: Conversations, max_tokens: int) -> TokenRows:
    """Every conversation as the chat template of the model in `base` writes it, cut at `max_tokens`.

    Raises UserError when the template ends an answer with no token that ends sampling: the model would not learn
    to stop.
    """
    ends = end_tokens(base, tokenizer)
    train = [_row(tokenizer, chat, ends, base) for chat in data.train]
    kept = [row for row in (_cut(row, max_tokens) for row in train) if row is not None]
    validation = [_cut(_row(tokenizer, chat, ends, base), max_tokens) for chat in data.validation]
    dropped = len(train) - len(kept)
    return TokenRows(
        train=tuple(kept),
        validation=tuple(row for row in validation if row is not None),
        max_tokens=max_tokens,
        given=len(train),
        cut=sum(len(row.input_ids) > max_tokens for row in train) - dropped,
        dropped=dropped,
    )


def _row(tokenizer: Any, chat: Sequence[Message], ends: frozenset[int], base: Path) -> TokenRow:
    """Learned is what sampling has to produce after the prompt that it is given, up to its end token.

    That is the answer with what a template writes between the prompt and it (gpt-oss's channel), and without what a
    template writes after the end token (Qwen's line break). The prompt's tokens are the common prefix: Qwen3's empty
    thinking block is asked with and not learned.
    """
    turns = [turn.as_dict() for turn in chat]
    prompt = chat_tokens(tokenizer, turns[:-1], add_generation_prompt=True)
    whole = chat_tokens(tokenizer, turns)
    start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))
    end = max((place for place in range(start, len(whole)) if whole[place] in ends), default=None)
    if end is None:
        raise UserError(
            f"the chat template of {base} ends an answer with {tokenizer.decode(whole[-1:])!r}, and none of the tokens "
            f"that end sampling ({tokenizer.decode(sorted(ends))}) is in it: check eos_token_id in its "
            "generation_config.json."
        )
    learned = [IGNORED] * start + whole[start : end + 1] + [IGNORED] * (len(whole) - end - 1)
    return TokenRow(input_ids=whole, labels=learned)


def _cut(row: TokenRow, max_tokens: int) -> TokenRow | None:
    """The first `max_tokens` of a row; None where nothing of them is learned."""
    labels = row.labels[:max_tokens]
    if all(label == IGNORED for label in labels):
        return None
    return TokenRow(input_ids=row.input_ids[:max_tokens], labels=labels)


def chat_tokens(tokenizer: Any, turns: Sequence[dict[str, str]], **options: Any) -> list[int]:
    """A conversation's token ids. The template writes every special token, so that the tokenizer adds none again."""
    text = tokenizer.apply_chat_template(turns, tokenize=False, **options)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
