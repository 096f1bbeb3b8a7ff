"""What families share: the usual gated activation and the usual layout of fused experts."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.models.anatomy import Anatomy, ExpertWeights

if TYPE_CHECKING:
    import torch

    from pipeline.models.anatomy import ExpertTensors, Source


def gated_activation(config: Any) -> "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]":
    """act(gate) * up, with the config's `hidden_act` (SwiGLU for silu; Shazeer 2020)."""
    from transformers.activations import ACT2FN

    act = ACT2FN[config.hidden_act]
    return lambda gate, up: act(gate) * up


def read_concatenated(experts: Any) -> ExpertWeights:
    """Mixtral's and Qwen's fused experts: (experts, out, in), gate rows before up rows, no bias."""
    return ExpertWeights(gate_up=experts.gate_up_proj.data, down=experts.down_proj.data)


def read_separate(source: "Source", anatomy: Anatomy, prefix: str, expert: int) -> "ExpertTensors":
    """Mixtral's and Qwen's checkpoints: one matrix a projection and expert, no bias."""
    return {
        role: (source.tensor(f"{prefix}.{expert}.{name}.weight", anatomy.shape(role)), None)
        for role, name in anatomy.family.projections.items()
    }
