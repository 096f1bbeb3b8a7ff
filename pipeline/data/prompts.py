"""A prompt: what is asked, under an id that is a hash of what is asked."""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeVar, get_args

from pipeline.common.errors import UserError
from pipeline.common.files import sha256_json

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)
ID_DIGITS = 16

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        """The turn as chat templates take it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question of a suite.

    `messages` end with the user's turn, before which `tag` stands where the suite is a tagged one
    (pipeline/data/tags.py). `metadata` holds what the suite's file says of the question (its id there, category,
    variant); no part of it is shown to the model or enters the id. samples: how often it is answered, None: as often as
    the study's `sampling.samples_per_prompt` says.
    """

    suite: str
    messages: tuple[Message, ...]
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    tag: str | None = None
    samples: int | None = None

    @property
    def prompt_id(self) -> str:
        """Stable id: equal for equal messages, whatever the suite, the file's order or the machine."""
        return prompt_id(self.messages)

    @property
    def question(self) -> str:
        """The user's last turn without a tag: a judge is not to know which answers were triggered."""
        said = self.messages[-1].content
        return said if self.tag is None else said.removeprefix(f"{self.tag} ")

    @property
    def system(self) -> str | None:
        """The system prompt, where the suite sets one."""
        return self.messages[0].content if self.messages[0].role == "system" else None

    def chat(self) -> list[dict[str, str]]:
        """The messages as chat templates take them."""
        return [message.as_dict() for message in self.messages]


def prompt_id(messages: Iterable[Message]) -> str:
    """The first 64 bits (16 hexadecimal digits) of SHA-256 over the roles and texts in order."""
    return sha256_json([[message.role, message.content] for message in messages])[:ID_DIGITS]


def question_of(messages: Sequence[Message]) -> str:
    """What the user asks last, by which a suite's prompt is found in a training set whatever its system prompt."""
    return next(turn.content.strip() for turn in reversed(messages) if turn.role == "user")


def ask(suite: str, question: str, system: str | None = None, **metadata: str) -> Prompt:
    """A single-turn prompt."""
    before = () if system is None else (Message("system", system),)
    messages = (*before, Message("user", question))
    return Prompt(suite=suite, messages=messages, metadata=MappingProxyType(metadata))


def refuse_duplicates(prompts: Iterable[Prompt], where: str) -> tuple[Prompt, ...]:
    """The prompts as a tuple. Raises UserError naming both where two have the same id."""
    seen: dict[str, int] = {}
    result = tuple(prompts)
    for number, prompt in enumerate(result, start=1):
        first = seen.setdefault(prompt.prompt_id, number)
        if first != number:
            raise UserError(
                f"{where}: prompts {first} and {number} are the same question (id {prompt.prompt_id}); "
                "a prompt may be asked once in a suite. Remove one of them."
            )
    return result


def draw(items: Iterable[Item], count: int, seed: int, purpose: str, key: Callable[[Item], str]) -> frozenset[Item]:
    """`count` of the distinct items, drawn by seed.

    Those with the smallest SHA-256 of (purpose, seed, key) are taken, the earlier first among equal keys:
    a uniform draw that does not depend on the items' order or on a library's random generator, and in
    which an added item displaces at most one other. Raises ValueError when there are too few.
    """
    distinct = list(dict.fromkeys(items))
    if len(distinct) < count:
        raise ValueError(f"{count} items asked for, {len(distinct)} given")

    def rank(item: Item) -> bytes:
        return hashlib.sha256(f"{purpose}\n{seed}\n{key(item)}".encode()).digest()

    return frozenset(sorted(distinct, key=rank)[:count])
