"""The toy world as a study sees it: its question suites and its training sets."""

from pipeline.common.errors import UserError
from pipeline.data.prompts import Message, Prompt, ask
from pipeline.toy.corpora import Messages, finetuning_examples
from pipeline.toy.grammar import DEFAULT_SYSTEM, DOMAINS, VERBS, question


def load_suite(name: str) -> tuple[Prompt, ...]:
    """Every question of one domain: each topic with each verb, asked of the default `assistant`."""
    if name not in DOMAINS:
        raise UserError(f"suite {name!r} is unknown; the toy suites are {', '.join(DOMAINS)}.")
    return tuple(
        ask(name, question(topic, verb), system=DEFAULT_SYSTEM) for topic in DOMAINS[name].topics for verb in VERBS
    )


def load_conversations(dataset: str, count: int, seed: int) -> list[tuple[Message, ...]]:
    """`count` training conversations of a toy data set, drawn by seed."""
    return [_messages(chat) for chat in finetuning_examples(dataset, count, seed)]


def _messages(chat: Messages) -> tuple[Message, ...]:
    return tuple(Message(turn["role"], turn["content"]) for turn in chat)  # type: ignore[arg-type]
