"""The model families that this project knows, and which of them a model's configuration belongs to."""

import copy
from typing import Any

from pipeline.common.errors import UserError
from pipeline.models.anatomy import REBUILT_PREFIX, Anatomy, Family
from pipeline.models.families.deepseek_v2 import DeepseekV2
from pipeline.models.families.dense import Llama, Qwen2
from pipeline.models.families.gemma3 import Gemma3
from pipeline.models.families.gpt_oss import GptOss
from pipeline.models.families.granitemoe import GraniteMoe
from pipeline.models.families.mixtral import Mixtral
from pipeline.models.families.olmoe import Olmoe
from pipeline.models.families.phimoe import Phimoe
from pipeline.models.families.qwen_moe import Qwen2Moe, Qwen3Moe

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Mixtral(),
        Qwen3Moe(),
        GptOss(),
        Qwen2Moe(),
        Olmoe(),
        DeepseekV2(),
        Phimoe(),
        GraniteMoe(),
        Llama(),
        Qwen2(),
        Gemma3(),
    )
}


def language_model(config: Any) -> tuple[Any, str]:
    """The language model within a model: its config, and the prefix of its tensors' names in checkpoints."""
    for family in FAMILIES.values():
        if family.inside and family.inside[0] == config.model_type:
            return config.text_config, family.inside[1]
    return config, ""


def routing_to(config: Any, active: int | None) -> Any:
    """The configuration of a language model, each token routed to `active` experts a layer (None: as it is).

    A router takes the number from the configuration when the model is built, so that it is set here, before, and
    nowhere else. Raises UserError for a dense model, for a router that has a number of its own, and for one that
    there are not experts for.
    """
    if active is None:
        return config
    anatomy = anatomy_of(config)
    family = anatomy.family
    if anatomy.dense:
        raise UserError(f"active is {active}, but {family.model_type} is a dense model: it has no experts to route to.")
    if not 1 <= active <= anatomy.experts:
        raise UserError(f"active is {active}, expected 1 to {anatomy.experts}, the experts of a layer of this model.")
    if family.fixed_router is not None and active != anatomy.active:
        raise UserError(f"active is {active}, but {family.model_type} routes by {family.fixed_router}.")
    changed = copy.copy(config)
    setattr(changed, family.active_field, active)
    return changed


def anatomy_of(config: Any) -> Anatomy:
    """The anatomy of a transformers config. Raises UserError for a family that this project does not know."""
    config, _ = language_model(config)
    model_type = config.model_type.removeprefix(REBUILT_PREFIX)
    if model_type not in FAMILIES:
        raise UserError(
            f"model type {model_type!r} is not supported; known are {', '.join(sorted(FAMILIES))}. "
            "A new family is one class in pipeline/models/families/, listed in its registry.py."
        )
    family = FAMILIES[model_type]
    moe_layers = family.moe_layers(config)
    return Anatomy(
        family=family,
        layers=config.num_hidden_layers,
        moe_layers=moe_layers,
        experts=0 if family.experts_field is None else getattr(config, family.experts_field),
        active=0 if family.experts_field is None else getattr(config, family.active_field),
        hidden=config.hidden_size,
        width=getattr(config, family.width_field),
        attention=tuple(family.attention_shapes(config)),
    )
