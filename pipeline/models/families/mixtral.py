"""Mixtral (Jiang et al. 2024): every layer a MoE, softmax over all experts, top-2 renormalised."""

from pipeline.models.anatomy import Family


class Mixtral(Family):
    """Mixtral-8x7B and 8x22B; checkpoints call the block `block_sparse_moe`."""

    model_type = "mixtral"
    projections = {"gate": "w1", "up": "w3", "down": "w2"}  # noqa: RUF012 (declared ClassVar in Family)
    experts_field = "num_local_experts"
    router = "gate"
    checkpoint_block = "block_sparse_moe"
