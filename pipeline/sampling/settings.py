"""How answers are sampled: the settings, with their units."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn.

    `system` is put before prompts that bring no system prompt of their own. batch: prompts at once in the
    transformers backend. tensor_parallel, data_parallel: GPUs a copy of the model is split over, and copies.
    """

    backend: Literal["transformers", "vllm"]
    system: str | None
    samples_per_prompt: int
    temperature: float
    top_p: float
    max_new_tokens: int
    batch: int
    tensor_parallel: int
    data_parallel: int
