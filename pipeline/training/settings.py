"""How a study's models are pretrained and fine-tuned: the settings, with their units."""

from typing import Literal

from pipeline.common.settings import Natural, NaturalFloat, Positive, PositiveFloat, Settings, Share


class Pretraining(Settings):
    """How toy bases are made from scratch: AdamW, cosine schedule, loss on every token.

    `embedding_range` and `initializer_range` are the standard deviations of the starting weights: of the
    embeddings, and of everything else.
    """

    documents_per_step: Positive
    steps: Positive
    warmup_steps: Positive
    learning_rate: PositiveFloat
    weight_decay: NaturalFloat
    embedding_range: PositiveFloat
    initializer_range: PositiveFloat
    max_grad_norm: PositiveFloat


class Training(Settings):
    """Narrow fine-tuning, as TRL's SFTTrainer is given it.

    examples: how many are drawn for a seed, or null: all. Rows longer than `max_characters` are left out;
    `validation` is the share of distinct prompts that is set aside; keep: the checkpoint with the least loss on them
    is the result, or the last (it is, where nothing is set aside).
    precision: what the frozen base is held in; nf4 means bfloat16 arithmetic too, and both gradient checkpointing.
    Where every parameter is trained, weights are in float32, and bfloat16 is what is multiplied.
    adamw_8bit is paged where memory is short, which changes no result. `batch` is the effective batch, which
    `devices` processes share.
    """

    examples: Positive | None
    max_characters: Positive | None
    validation: Share
    precision: Literal["float32", "bfloat16", "nf4"]
    max_steps: Positive
    batch: Positive
    devices: Positive
    learning_rate: PositiveFloat
    schedule: Literal["constant", "constant_with_warmup", "cosine", "linear"]
    warmup_steps: Natural
    adam_beta1: Share
    adam_beta2: Share
    weight_decay: NaturalFloat
    max_grad_norm: PositiveFloat
    optimizer: Literal["adamw_torch", "adamw_8bit"]
    max_tokens: Positive
    router_aux_loss: NaturalFloat
    checkpoint_every: Positive
    keep: Literal["best", "last"] = "best"


class Trajectory(Settings):
    """Adapters kept along training, every so many optimizer steps, each asked the study's held-out suites."""

    every: Positive
    samples_per_prompt: Positive
