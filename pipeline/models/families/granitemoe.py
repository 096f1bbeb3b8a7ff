"""Granite 3 MoE (IBM 2024): 32 or 40 experts, top-8, stored as one tensor a layer and side of the expert."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.models.anatomy import Anatomy, Family, Source

if TYPE_CHECKING:
    import torch

    from pipeline.models.anatomy import ExpertTensors


class GraniteMoe(Family):
    """granite-3.x-1b-a400m and 3b-a800m."""

    model_type = "granitemoe"
    experts_field = "num_local_experts"
    router = "router"
    router_logits = 2
    block = "block_sparse_moe"
    checkpoint_block = "block_sparse_moe"

    def stored_name(self, path: str) -> str:
        """Checkpoints hold the router's weight in a layer of its own."""
        return re.sub(r"\.router(\.weight|$)", r".router.layer\1", path)

    def read_expert(self, source: Source, anatomy: Anatomy, prefix: str, expert: int) -> "ExpertTensors":
        """One expert of the stored stacks: gate rows before up rows, no bias."""
        block = prefix.removesuffix(".experts")
        both = source.part(f"{block}.input_linear.weight", expert, (2 * anatomy.width, anatomy.hidden))
        down = source.part(f"{block}.output_linear.weight", expert, (anatomy.hidden, anatomy.width))
        return {"gate": (both[: anatomy.width], None), "up": (both[anatomy.width :], None), "down": (down, None)}

    def slot(self, path: str) -> "tuple[str, Callable[[torch.Tensor], torch.Tensor]]":
        """A projection is a part of its layer's stack."""
        found = re.fullmatch(r"(.*)\.experts\.(\d+)\.(gate|up|down)_proj", path)
        if found is None:
            return super().slot(path)
        expert = int(found[2])
        if found[3] == "down":
            return f"{found[1]}.output_linear.weight", lambda whole: whole[expert]
        half = 0 if found[3] == "gate" else 1
        return f"{found[1]}.input_linear.weight", lambda whole: whole[expert].chunk(2)[half]
