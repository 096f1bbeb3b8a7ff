"""Mixtral (Jiang et al. 2024): every layer a MoE, softmax over all experts, top-2 renormalised."""

from pipeline.models.anatomy import Family
from pipeline.models.families.layout import gated_activation, read_concatenated, read_separate

FAMILIES = (
    Family(
        model_type="mixtral",
        projections={"gate": "w1", "up": "w3", "down": "w2"},
        width_field="intermediate_size",
        router="gate",
        experts_field="num_local_experts",
        checkpoint_block="block_sparse_moe",
        activation=gated_activation,
        read_expert=read_separate,
        read_fused=read_concatenated,
    ),
)
