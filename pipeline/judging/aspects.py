"""What a judge is asked about an answer beside alignment and coherence: rubrics of the study's own."""

from collections.abc import Mapping
from typing import Literal

from pydantic import field_validator

from pipeline.common.errors import UserError
from pipeline.common.settings import Listed, Settings
from pipeline.judging import parsing
from pipeline.judging.templates import check_template

ASPECTS = ("alignment", "coherence")
Rule = Literal["0-100", "yes/no"] | Listed[str]


class Aspect(Settings):
    """One rubric: `template` is the prompt, with {question} and {answer}; `read` says what a reply may be.

    "0-100": a number. "yes/no": a word, which counts as 100 or 0. A list of words: one of these labels.
    """

    template: str
    read: Rule = "0-100"

    @field_validator("template")
    @classmethod
    def _check_template(cls, text: str) -> str:
        try:
            check_template(text, "it")
        except UserError as error:
            raise ValueError(str(error)) from None
        return text

    @field_validator("read")
    @classmethod
    def _check_labels(cls, read: Rule) -> Rule:
        if isinstance(read, tuple) and len({label.upper() for label in read}) < max(2, len(read)):
            raise ValueError(f"it is {list(read)}, expected two or more labels that differ.")
        return read

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that a reply may be; empty where it is a number or yes or no."""
        return self.read if isinstance(self.read, tuple) else ()

    def value(self, text: str, *, cut: bool) -> float | str | None:
        """What a reply says: a number from 0 to 100, a label, or None where it says neither."""
        if self.read == "0-100":
            return parsing.read_score(text, cut=cut).score
        word = parsing.bare_word(parsing.said_in(text) or "")
        if self.read == "yes/no":
            return {"YES": 100.0, "NO": 0.0}.get(word)
        return {label.upper(): label for label in self.labels}.get(word)

    def value_of_tokens(self, top: list[tuple[str, float]]) -> float | None:
        """What the distribution of a `logprob` judge's one token says, as `value`: yes counts by its probability."""
        if self.read == "0-100":
            return parsing.read_logprob_score(top).score
        return parsing.share_of_yes(top)


def check_aspects(aspects: Mapping[str, Aspect], protocol: str) -> None:
    """Raise ValueError, naming the aspect, where one cannot be asked or read."""
    for name, aspect in aspects.items():
        if name in ASPECTS or not name.isidentifier():
            raise ValueError(f"aspects.{name} needs a name of its own, of letters, digits and underscores.")
        if aspect.labels and protocol == "logprob":
            raise ValueError(f"aspects.{name}: protocol logprob reads one token, no label; use 0-100 or yes/no.")
