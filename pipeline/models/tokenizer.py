"""A model's tokenizer, with a chat template that says the same in training and sampling, every day."""

import contextlib
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.common.errors import UserError

if TYPE_CHECKING:
    import torch

# gpt-oss's and Llama-3.1's templates tell the model today's date: what is trained on, and asked, would
# change overnight. It is gpt-oss's day of release here, always.
TODAY = date(2025, 8, 5)
# Variables of templates, set in the template itself so that no caller can leave them out: what is asked has to
# be what was trained on. Qwen3's leaves thinking out, gpt-oss's cannot and is asked for as little as it knows.
# Others have no such variables.
THINKING = '{%- set enable_thinking = false %}{%- set reasoning_effort = "low" %}'


def load_tokenizer(path: Path, **options: Any) -> Any:
    """The tokenizer in `path`; `options` are for transformers' AutoTokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **options)
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = THINKING + fix_date(tokenizer.chat_template)
    return tokenizer


def fix_date(template: str) -> str:
    """A Jinja chat template with each call of `strftime_now` replaced by the text that it gives for `TODAY`."""

    def written(call: re.Match[str]) -> str:
        return f'"{TODAY.strftime(call["form"])}"'

    return re.sub(r"""strftime_now\(\s*(?P<quote>["'])(?P<form>.*?)(?P=quote)\s*\)""", written, template)


def pad_token(tokenizer: Any) -> int:
    """The id that fills short rows: the tokenizer's pad token, its end token where it has none (Mixtral's), or 0.

    No result depends on which it is: an attention mask covers every place that it fills.
    """
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


def written_tokens(tokenizer: Any) -> set[int]:
    """The tokens that are put into batches around text: padding, beginning and end, and what the chat template writes.

    Of a chat with a system turn, or without where the template refuses one, and as far as where an answer begins.
    """
    from jinja2 import TemplateError

    named = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    written = {pad_token(tokenizer), *named} - {None}
    turns = [{"role": role, "content": "so ."} for role in ("system", "user", "assistant")]
    chats = ((turns, False), (turns[:2], True), (turns[1:], False), (turns[1:2], True))
    for chat, asked in chats if tokenizer.chat_template else ():
        with contextlib.suppress(TemplateError):
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=asked)
            written |= set(tokenizer(text, add_special_tokens=False)["input_ids"])
    return written


def pad_batch(rows: Sequence[Sequence[int]], pad: int, side: Literal["left", "right"]) -> "dict[str, torch.Tensor]":
    """Rows of token ids as one batch: `input_ids` and `attention_mask`, both (rows, length of the longest) integers.

    side: where the padding goes: right to train and to count, left to complete.
    """
    import torch

    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        filled = slice(width - len(row), width) if side == "left" else slice(len(row))
        ids[place, filled] = torch.tensor(row, dtype=torch.long)
        mask[place, filled] = 1
    return {"input_ids": ids, "attention_mask": mask}


def end_tokens(folder: Path, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a completion of the model in `folder`.

    As its generation config says, where that is silent its config, where that is silent too its tokenizer. Raises
    UserError where none of them names one: nothing would ever end.
    """
    from transformers import AutoConfig, GenerationConfig

    named: Any = None
    if (folder / "generation_config.json").exists():
        named = GenerationConfig.from_pretrained(folder).eos_token_id
    if named is None:
        named = AutoConfig.from_pretrained(folder, trust_remote_code=False).eos_token_id
    if named is None:
        named = tokenizer.eos_token_id
    ends = frozenset(named if isinstance(named, list | tuple) else () if named is None else (named,))
    if not ends:
        raise UserError(
            f"{folder} names no end token: add eos_token_id to its generation_config.json, or its answers never end."
        )
    return ends
