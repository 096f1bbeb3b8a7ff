"""What a sampling backend is asked and what it gives back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pipeline.data.prompts import Prompt
from pipeline.models.bases import Base


@dataclass(frozen=True, kw_only=True)
class Model:
    """What answers: a base, with an adapter or without, held in the precision that the adapter was trained on."""

    base: Base
    adapter: Path | None
    precision: Literal["float32", "bfloat16", "nf4"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One completion to draw: what is asked, which sample of it, and its own random seed."""

    prompt: Prompt
    sample: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A completion cut at the token level: its tokens decoded, what was thought and what was answered apart.

    completion_tokens counts both, marks and end included.
    """

    text: str
    thinking: str
    finish: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


class Backend(Protocol):
    """Something that completes requests."""

    def complete(self, batches: Sequence[list[Request]]) -> Iterator[tuple[int, list[Completion]]]:
        """Each batch's place and its completions, one a request in order; batches as they are finished."""
        ...
