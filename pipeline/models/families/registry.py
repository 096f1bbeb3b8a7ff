"""Which family a model's configuration belongs to."""

from functools import cache
from typing import Any

from pipeline.common.errors import UserError
from pipeline.models.anatomy import REBUILT_PREFIX, Anatomy, Family
from pipeline.models.families import dense, gemma3, gpt_oss, mixtral, qwen3_moe


@cache
def families() -> dict[str, Family]:
    """Every known family by `model_type`."""
    return {
        family.model_type: family
        for module in (dense, gemma3, gpt_oss, mixtral, qwen3_moe)
        for family in module.FAMILIES
    }


def language_model(config: Any) -> tuple[Any, str]:
    """The part of a model that reads and writes: its config, and the prefix of its tensors' names in checkpoints."""
    for family in families().values():
        if family.inside and family.inside[0] == config.model_type:
            return config.text_config, family.inside[1]
    return config, ""


def anatomy_of(config: Any) -> Anatomy:
    """The anatomy of a transformers config. Raises UserError for a family that this project does not know."""
    config, _ = language_model(config)
    model_type = config.model_type.removeprefix(REBUILT_PREFIX)
    known = families()
    if model_type not in known:
        raise UserError(
            f"model type {model_type!r} is not supported; known are {', '.join(sorted(known))}. "
            "A new family is one file in pipeline/models/families/."
        )
    family = known[model_type]
    layers = config.num_hidden_layers
    dense = family.experts_field is None
    return Anatomy(
        family=family,
        layers=layers,
        moe_layers=() if dense else family.moe_layers(config) if family.moe_layers else tuple(range(layers)),
        experts=0 if dense else getattr(config, str(family.experts_field)),
        active=0 if dense else config.num_experts_per_tok,
        hidden=config.hidden_size,
        width=getattr(config, family.width_field),
    )
