"""Qwen's mixtures of experts, Qwen1.5/2-MoE and Qwen3-MoE: many small experts; a config may leave some layers dense."""

from typing import Any

from pipeline.models.anatomy import Family


class Qwen3Moe(Family):
    """Qwen3-30B-A3B: 128 experts, top-8, renormalised."""

    model_type = "qwen3_moe"
    width_field = "moe_intermediate_size"
    experts_field = "num_experts"
    router = "gate"

    def moe_layers(self, config: Any) -> tuple[int, ...]:
        """Layers that are sparse, by the rule of transformers' Qwen2MoeDecoderLayer and Qwen3MoeDecoderLayer."""
        return tuple(
            layer
            for layer in range(config.num_hidden_layers)
            if layer not in config.mlp_only_layers
            and config.num_experts > 0
            and (layer + 1) % config.decoder_sparse_step == 0
        )


class Qwen2Moe(Qwen3Moe):
    """Qwen1.5-MoE-A2.7B and Qwen2-57B-A14B: 60 or 64 experts, and one that every token passes, behind a gate."""

    model_type = "qwen2_moe"
    unquantised = frozenset({"shared_expert_gate"})
    shared = "shared_expert"

    def shared_width(self, config: Any) -> int:
        """Inner width of the shared expert."""
        return config.shared_expert_intermediate_size
