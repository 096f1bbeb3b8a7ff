"""OLMoE (Muennighoff et al. 2024): 64 small experts, top-8, every layer a MoE; open data, open checkpoints."""

from pipeline.models.anatomy import Family


class Olmoe(Family):
    """OLMoE-1B-7B."""

    model_type = "olmoe"
    experts_field = "num_experts"
    router = "gate"
