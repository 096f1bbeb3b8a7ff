"""PEFT's configuration of an adapter on chosen experts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.models.anatomy import Anatomy
from pipeline.models.experts.fused import FusedExperts, FusedExpertsLora
from pipeline.models.spec import Selection

if TYPE_CHECKING:
    from peft import LoraConfig


def lora_config(
    anatomy: Anatomy, selection: Selection, rank: int, alpha: float, rslora: bool, *, fused: bool = False
) -> "LoraConfig":
    """PEFT's configuration of a selection; with `fused`, for a model whose experts are FusedExperts.

    Only the unfused form is ever written to disk.
    """
    from peft import LoraConfig

    # LoraConfig types alpha as an integer and a custom layer as a class; it takes a float and a constructor.
    options: Any = {"lora_alpha": alpha}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        **options,
        use_rslora=rslora,
        lora_dropout=0.0,
        bias="none",
        target_modules=_target_pattern(anatomy, selection, fused=fused),
        modules_to_save=[anatomy.router_path(layer) for layer in selection.routers] or None,
    )
    if fused:
        custom: Any = {FusedExperts: FusedExpertsLora.of(selection, anatomy)}
        config._register_custom_module(custom)
    return config


def _target_pattern(anatomy: Anatomy, selection: Selection, *, fused: bool) -> str:
    """A regular expression that matches the chosen modules' paths in full, and nothing else."""

    def one_of(values: Sequence[object]) -> str:
        return "(" + "|".join(str(value) for value in values) + ")"

    blocks = one_of(sorted({anatomy.family.block, anatomy.family.checkpoint_block}))
    names = one_of([anatomy.family.projections[role] for role in selection.projections])
    layers_of: dict[tuple[int | None, ...], list[int]] = {}
    for layer, experts in selection.experts.items():
        layers_of.setdefault(experts, []).append(layer)
    patterns = []
    for experts, layers in layers_of.items():
        head = rf"model\.layers\.{one_of(layers)}\.{blocks}"
        if anatomy.dense:
            patterns.append(rf"{head}\.{names}")
        elif fused:
            patterns.append(rf"{head}\.experts")
        else:
            patterns.append(rf"{head}\.experts\.{one_of(experts)}\.{names}")
    if selection.attention:
        patterns.append(rf"model\.layers\.{one_of(selection.attention)}\.self_attn\.{one_of(anatomy.attention)}")
    return "|".join(patterns)
