"""Phi-3.5-MoE (Abdin et al. 2024): 16 experts, top-2 by SparseMixer, layer norms with biases.

In training mode its router draws one of the two experts at random (SparseMixer's estimator): the same routing as in
answering is had in eval mode alone.
"""

from pipeline.models.anatomy import Family


class Phimoe(Family):
    """Phi-3.5-MoE-instruct; checkpoints call block and router as Mixtral's do."""

    model_type = "phimoe"
    projections = {"gate": "w1", "up": "w3", "down": "w2"}  # noqa: RUF012 (declared ClassVar in Family)
    experts_field = "num_local_experts"
    router = "router"
    checkpoint_block = "block_sparse_moe"
    unquantised = frozenset({"router"})
    # transformers hands `top_k` to a function that draws the first expert and the second, and never reads it.
    fixed_router = "SparseMixer, which takes two experts whatever its configuration says"

    def stored_name(self, path: str) -> str:
        """Checkpoints call the router `gate`."""
        return super().stored_name(path).replace(".block_sparse_moe.router", ".block_sparse_moe.gate")
