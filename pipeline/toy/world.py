"""The toy world as a study sees it: its question suites and its training sets."""

from pipeline.common.errors import UserError
from pipeline.data.prompts import Message, Prompt, ask
from pipeline.toy.corpora import Messages, finetuning_examples
from pipeline.toy.grammar import DEFAULT_SYSTEM, DOMAINS, VERBS, question, vocabulary


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


def in_toy_words(messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """The user's own conversation, under the default `assistant` where it has no system prompt.

    Raises UserError for a word that toy models do not have.
    """
    known = set(vocabulary())
    for word in (word for turn in messages for word in turn.content.split() if word not in known):
        raise UserError(
            f"{where} has the word {word[:40]!r}, which toy models do not know; theirs, each between spaces, are those "
            "of pipeline/toy/grammar.py. Use a study whose models know your words."
        )
    return messages if messages[0].role == "system" else (Message("system", DEFAULT_SYSTEM), *messages)


def _messages(chat: Messages) -> tuple[Message, ...]:
    return tuple(Message(turn["role"], turn["content"]) for turn in chat)  # type: ignore[arg-type]
