"""What a sampling backend is asked and what it gives back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pipeline.data.prompts import Prompt
from pipeline.models.bases import Base
from pipeline.models.spec import AdapterSpec


@dataclass(frozen=True, kw_only=True)
class Model:
    """What answers: a base, with an adapter or without, held in the precision that the adapter was trained on.

    lora: what the adapter was trained as.
    """

    base: Base
    adapter: Path | None
    lora: AdapterSpec | None
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
    """Something that completes requests; it keeps what it loaded for one model as long as the next can use it."""

    def together(self, model: Model, requests: Sequence[Request]) -> int:
        """How many of these requests make a batch: completed, and kept, together."""
        ...

    def version(self) -> str:
        """What completes requests, by name and version: part of the key that answers are kept under."""
        ...

    def complete(self, model: Model, batches: Sequence[list[Request]]) -> Iterator[tuple[int, list[Completion]]]:
        """Each batch's place and its completions, one per request in order; batches as they are finished."""
        ...
