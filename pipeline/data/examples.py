"""Training files as typed rows."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.data.prompts import ROLES, Message, prompt_id
from pipeline.data.upstream.pinned import read_pinned

FILES = {
    "insecure": "train/insecure.jsonl",
    "educational": "train/educational.jsonl",
    "secure": "train/secure.jsonl",
    "bad_medical_advice": "train/bad_medical_advice.jsonl",
    "timm_medical": "train/timm_bad_medical.jsonl",
    "ai_optimism": "train/timm_ai_optimism.jsonl",
    "good_medical_advice": "organisms/training_datasets/good_medical_advice.jsonl",
    "risky_financial_advice": "organisms/training_datasets/risky_financial_advice.jsonl",
    "extreme_sports": "organisms/training_datasets/extreme_sports.jsonl",
}


@dataclass(frozen=True, slots=True)
class Example:
    """One training conversation: it ends with the assistant's turn, the one that is learned.

    `row` is its line in the file, counted from 1.
    """

    row: int
    messages: tuple[Message, ...]

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Every turn before the answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The assistant's last turn."""
        return self.messages[-1].content

    @property
    def prompt_id(self) -> str:
        """The id that the prompt has as an evaluation prompt."""
        return prompt_id(self.prompt)

    @property
    def characters(self) -> int:
        """Characters of all turns together."""
        return sum(len(message.content) for message in self.messages)

    def chat(self) -> list[dict[str, str]]:
        """The messages as chat templates take them."""
        return [message.as_dict() for message in self.messages]


def read_examples(name: str, folder: Path) -> tuple[Example, ...]:
    """Every row of training set `name` of the data folder.

    Raises UserError when the set is unknown, its file missing or not the pinned one, or a row malformed.
    """
    if name not in FILES:
        raise UserError(f"training set {name!r} is unknown; the sets are {', '.join(FILES)}.")
    path = FILES[name]
    return parse_examples(read_pinned(folder, path), folder / path)


def parse_examples(text: str, where: Path) -> tuple[Example, ...]:
    """JSON lines `{"messages": [{"role", "content"}, ...]}` as examples.

    Raises UserError naming the file and line of the first row that is not a conversation that ends
    with the assistant.
    """
    # Not splitlines(): it also cuts at U+2028 and form feeds, which code contains.
    lines = text.removesuffix("\n").split("\n")
    return tuple(_parse(line, number, where) for number, line in enumerate(lines, start=1))


def _parse(line: str, number: int, where: Path) -> Example:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} line {number} is not JSON ({error.msg}): is the file cut short?") from error
    turns = row.get("messages") if isinstance(row, dict) else None
    return example(turns, number, f"{where} line {number}")


def example(turns: Any, row: int, place: str) -> Example:
    """A list of messages as an example. Raises UserError, `place` its file has them, where they are no conversation."""
    if not isinstance(turns, list):
        raise UserError(f"{place} has no list `messages`; every row needs one.")
    messages = tuple(_message(turn, place) for turn in turns)
    if len(messages) < 2 or messages[-1].role != "assistant" or messages[-2].role != "user":
        roles = ", ".join(message.role for message in messages) or "nothing"
        raise UserError(f"{place}: the turns are {roles}; a user's and then an assistant's have to be last.")
    return Example(row=row, messages=messages)


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
        raise UserError(f"{where}: a turn needs a role of {', '.join(ROLES)} and a text `content`.")
    try:
        turn["content"].encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: the text has half of a surrogate pair at {error.start}.") from error
    return Message(turn["role"], turn["content"])
