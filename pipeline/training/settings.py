"""How a study's models are pretrained and fine-tuned: the settings, with their units."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How toy bases are made from scratch: AdamW, cosine schedule, loss on every token.

    `embedding_range` and `initializer_range` are the standard deviations of the starting weights: of the
    embeddings, and of everything else.
    """

    documents_per_step: int
    steps: int
    warmup_steps: int
    learning_rate: float
    weight_decay: float
    embedding_range: float
    initializer_range: float
    max_grad_norm: float


@dataclass(frozen=True, kw_only=True)
class Training:
    """Narrow fine-tuning, as TRL's SFTTrainer is given it.

    examples: how many are drawn for a seed, or null: all. Rows longer than `max_characters` are left out;
    `validation` is the share of distinct prompts that the checkpoint is chosen on (0: the last is kept).
    precision: what the frozen base is held in; nf4 means bfloat16 arithmetic too, and both gradient checkpointing.
    Where every parameter is trained, weights are in float32, and bfloat16 is what is multiplied.
    adamw_8bit is paged where memory is short, which changes no result. `batch` is the effective batch, which
    `devices` processes share.
    """

    examples: int | None
    max_characters: int | None
    validation: float
    precision: Literal["float32", "bfloat16", "nf4"]
    max_steps: int
    batch: int
    devices: int
    learning_rate: float
    schedule: Literal["constant", "constant_with_warmup", "cosine", "linear"]
    warmup_steps: int
    adam_beta1: float
    adam_beta2: float
    weight_decay: float
    max_grad_norm: float
    optimizer: Literal["adamw_torch", "adamw_8bit"]
    max_tokens: int
    router_aux_loss: float
    checkpoint_every: int


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Adapters kept along training, every so many optimizer steps, each asked the study's held-out suites."""

    every: int
    samples_per_prompt: int
