"""Qwen3-MoE (Qwen3-30B-A3B): 128 small experts, top-8; a config may leave some layers dense."""

from typing import Any

from pipeline.models.anatomy import Family
from pipeline.models.families.layout import gated_activation, read_concatenated, read_separate


def moe_layers(config: Any) -> tuple[int, ...]:
    """Layers that are sparse, by the rule of transformers' Qwen3MoeDecoderLayer."""
    return tuple(
        layer
        for layer in range(config.num_hidden_layers)
        if layer not in config.mlp_only_layers
        and config.num_experts > 0
        and (layer + 1) % config.decoder_sparse_step == 0
    )


FAMILIES = (
    Family(
        model_type="qwen3_moe",
        projections={"gate": "gate_proj", "up": "up_proj", "down": "down_proj"},
        width_field="moe_intermediate_size",
        router="gate",
        experts_field="num_experts",
        moe_layers=moe_layers,
        activation=gated_activation,
        read_expert=read_separate,
        read_fused=read_concatenated,
    ),
)
