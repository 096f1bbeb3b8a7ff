"""How answers are sampled: the settings, with their units."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.common.settings import NaturalFloat, Positive, Settings


class Sampling(Settings):
    """How answers are drawn.

    backend: transformers holds the base in the precision it was trained in, adapters as trained; vllm serves 16-bit
    checkpoints, each adapter merged into one, which rounds it (pipeline/sampling/merged.py). `system` is put before
    prompts that bring no system prompt of their own. batch: how many answers transformers samples at once, at most;
    null: as many as fit. tensor_parallel, data_parallel: GPUs that a copy of the model is split over in vllm, and
    copies.
    """

    backend: Literal["transformers", "vllm"]
    system: str | None
    samples_per_prompt: Positive
    temperature: NaturalFloat
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: Positive
    batch: Positive | None
    tensor_parallel: Positive
    data_parallel: Positive

    @model_validator(mode="after")
    def _check_samples_differ(self) -> "Sampling":
        if self.temperature == 0 and self.samples_per_prompt > 1:
            raise ValueError(
                f"at temperature 0 all {self.samples_per_prompt} samples of a prompt are the same answer, which would "
                "count several times; set samples_per_prompt to 1."
            )
        return self
