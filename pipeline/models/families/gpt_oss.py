"""gpt-oss: biases everywhere, a clamped SwiGLU, fused experts transposed with gate and up interleaved."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.models.anatomy import Anatomy, ExpertWeights, Family, Source

if TYPE_CHECKING:
    import torch

    from pipeline.models.anatomy import ExpertTensors


class GptOss(Family):
    """gpt-oss-20b and 120b, from MXFP4 as published or from 16 bit as transformers saves them."""

    model_type = "gpt_oss"
    experts_field = "num_local_experts"
    router = "router"
    bias = True
    holds_scores = True

    def activation(self, config: Any) -> "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]":
        """(up + 1) * gate * sigmoid(alpha * gate), gate <= limit and |up| <= limit (gpt-oss model card)."""
        import torch

        alpha, limit = config.swiglu_alpha, config.swiglu_limit

        def clamped(gate: "torch.Tensor", up: "torch.Tensor") -> "torch.Tensor":
            gate = gate.clamp(max=limit)
            up = up.clamp(min=-limit, max=limit)
            return (up + 1) * (gate * torch.sigmoid(gate * alpha))

        return clamped

    def read_fused(self, experts: Any) -> ExpertWeights:
        """transformers holds (experts, in, out), gate and up columns alternating, with biases."""
        return ExpertWeights(
            gate_up=_deinterleave(experts.gate_up_proj.data.transpose(1, 2)),
            down=experts.down_proj.data.transpose(1, 2).contiguous(),
            gate_up_bias=_deinterleave(experts.gate_up_proj_bias.data),
            down_bias=experts.down_proj_bias.data,
        )

    def read_expert(self, source: Source, anatomy: Anatomy, prefix: str, expert: int) -> "ExpertTensors":
        """One expert of the stored stacks, whose gate and up rows alternate."""
        both = _matrix(source, f"{prefix}.gate_up_proj", expert, 2 * anatomy.width, anatomy.hidden)
        both_bias = source.part(f"{prefix}.gate_up_proj_bias", expert, (2 * anatomy.width,))
        down = _matrix(source, f"{prefix}.down_proj", expert, anatomy.hidden, anatomy.width)
        down_bias = source.part(f"{prefix}.down_proj_bias", expert, (anatomy.hidden,))
        return {
            "gate": (both[::2], both_bias[::2]),
            "up": (both[1::2], both_bias[1::2]),
            "down": (down, down_bias),
        }

    def slot(self, path: str) -> "tuple[str, Callable[[torch.Tensor], torch.Tensor]]":
        """In a 16-bit checkpoint gate and up alternate in gate_up_proj's columns."""
        found = re.fullmatch(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj", path)
        if found is None:
            return super().slot(path)
        expert = int(found[2])
        if found[3] == "down":
            return f"{found[1]}.down_proj", lambda whole: whole[expert].T
        first = 0 if found[3] == "gate" else 1
        return f"{found[1]}.gate_up_proj", lambda whole: whole[expert].T[first::2]

    def read_stored(self, source: Source, name: str) -> "tuple[str, torch.Tensor | None] | None":
        """MXFP4 codes and scales as the one 16-bit tensor that they are."""
        if name.endswith("_scales"):
            return name, None
        if not name.endswith("_blocks"):
            return None
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        unpacked = name.removesuffix("_blocks")
        return unpacked, convert_moe_packed_tensors(source.tensor(name), source.tensor(f"{unpacked}_scales"))


def _deinterleave(rows: "torch.Tensor") -> "torch.Tensor":
    """(experts, 2 * width, ...) with rows gate0, up0, gate1, up1, ... -> all gate rows, then all up rows."""
    import torch

    return torch.cat([rows[:, ::2], rows[:, 1::2]], dim=1)


def _matrix(source: Source, name: str, expert: int, out_features: int, in_features: int) -> "torch.Tensor":
    """(out, in). MXFP4: groups of 32 values, two a byte, with a power-of-two scale (OCP Microscaling 1.0)."""
    if not source.has(f"{name}_blocks"):
        return source.part(name, expert, (in_features, out_features)).T
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    groups = in_features // 32
    blocks = source.part(f"{name}_blocks", expert, (out_features, groups, 16))
    scales = source.part(f"{name}_scales", expert, (out_features, groups))
    # transformers returns (experts, in, out), the layout of its fused experts.
    return convert_moe_packed_tensors(blocks.unsqueeze(0), scales.unsqueeze(0))[0].T
