"""Adapters for programs that know nothing of this project: plain PEFT and vLLM.

They read adapters that name every expert, or none. Experts (and layers) that were not adapted get factors of
zero, and the scale is folded into B (alpha equals rank, no rank stabilisation): PEFT 0.21 doubles rank and
alpha where it fuses gate and up, which under rank stabilisation would scale them by sqrt(2).

Mixtral and Qwen3 get a pair an expert and projection, which vLLM reads and PEFT fuses when it loads. gpt-oss,
whose checkpoints have fused experts, gets PEFT's stacked `target_parameters` form; vLLM is given it merged.
"""

import math
from pathlib import Path
from typing import Any

import torch

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_path, write_json
from pipeline.models.adapters import CONFIG, PREFIX, WEIGHTS, read_adapter
from pipeline.models.anatomy import ROLES, Anatomy, Role
from pipeline.models.families.registry import anatomy_of

# Families whose experts' adapters PEFT 0.21 was found to convert right.
READ_BY_PEFT = ("mixtral", "qwen3_moe", "gpt_oss")


def export_adapter(folder: Path, target: Path, config: Any) -> None:
    """Write the adapter in `folder` to `target` for plain PEFT; `config` is the base model's.

    Raises UserError when the adapter cannot be read, does not fit, is of a family whose experts PEFT does not convert,
    or trained routers (merge those).
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    anatomy = anatomy_of(config)
    settings, tensors, selection = read_adapter(folder, anatomy)
    if not anatomy.dense and anatomy.family.model_type not in READ_BY_PEFT:
        raise UserError(f"PEFT reads no adapters on single experts of {anatomy.family.model_type} models: merge it.")
    if selection.routers:
        raise UserError(f"{folder} holds trained routers, which other programs cannot load: merge it.")
    rank = settings["r"]
    scale = settings["lora_alpha"] / (math.sqrt(rank) if settings["use_rslora"] else rank)
    for name in tensors:
        if name.endswith(".lora_B.weight"):
            tensors[name] = tensors[name] * scale
    attention = [*anatomy.attention] if selection.attention else []
    for layer in range(anatomy.layers) if attention else ():
        for path in anatomy.attention_paths(layer):
            shapes = _attention_shapes(tensors, path, selection.attention[0])
            _pad(tensors, PREFIX + path, *shapes)
    options: dict[str, Any] = {}
    if not selection.experts or anatomy.dense:
        modules = [anatomy.family.projections[role] for role in selection.projections]
        for layer in anatomy.adaptable_layers if anatomy.dense and selection.experts else ():
            _pad_projections(tensors, anatomy, rank, layer, None, selection.projections)
    elif anatomy.family.bias:
        modules = []
        tensors = _stacked(tensors, anatomy, rank)
        options["target_parameters"] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        options["rank_pattern"] = options["alpha_pattern"] = {r".*\.experts\.gate_up_proj": 2 * rank}
    else:
        modules = [anatomy.family.projections[role] for role in ROLES]
        for layer in anatomy.moe_layers:
            for expert in range(anatomy.experts):
                _pad_projections(tensors, anatomy, rank, layer, expert, ROLES)
    written = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=rank,
        target_modules=modules + attention,
        base_model_name_or_path=settings["base_model_name_or_path"],
        revision=settings["revision"],
        inference_mode=True,
        **options,
    ).to_dict()
    with atomic_path(target / WEIGHTS) as temporary:
        save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, temporary)
    write_json(
        target / CONFIG,
        {key: sorted(value) if isinstance(value, set) else value for key, value in written.items()},
    )


def _attention_shapes(
    tensors: dict[str, torch.Tensor], path: str, adapted_layer: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B of one attention projection, from a layer that has them."""
    leaf = path.split(".self_attn.")[1]
    name = f"{PREFIX}model.layers.{adapted_layer}.self_attn.{leaf}"
    return tuple(tensors[f"{name}.lora_A.weight"].shape), tuple(tensors[f"{name}.lora_B.weight"].shape)


def _pad_projections(
    tensors: dict[str, torch.Tensor],
    anatomy: Anatomy,
    rank: int,
    layer: int,
    expert: int | None,
    roles: tuple[Role, ...],
) -> None:
    for role in roles:
        out_features, in_features = anatomy.shape(role)
        name = anatomy.checkpoint_name(PREFIX + anatomy.projection_path(layer, expert, role))
        _pad(tensors, name, (rank, in_features), (out_features, rank))


def _pad(tensors: dict[str, torch.Tensor], name: str, low: tuple[int, ...], high: tuple[int, ...]) -> None:
    tensors.setdefault(f"{name}.lora_A.weight", torch.zeros(low))
    tensors.setdefault(f"{name}.lora_B.weight", torch.zeros(high))


def _stacked(tensors: dict[str, torch.Tensor], anatomy: Anatomy, rank: int) -> dict[str, torch.Tensor]:
    """PEFT's `target_parameters` form of gpt-oss: A (experts * rank, in), B (out, rank * experts), expert
    last.

    gate_up has twice the rank: the gate's factors, then the up projection's, whose rows alternate in the
    output.
    """
    experts, width, hidden = anatomy.experts, anatomy.width, anatomy.hidden
    stacked = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in anatomy.moe_layers:
        low = {"gate_up": torch.zeros(experts, 2 * rank, hidden), "down": torch.zeros(experts, rank, width)}
        high = {
            "gate_up": torch.zeros(2 * width, 2 * rank, experts),
            "down": torch.zeros(hidden, rank, experts),
        }
        places: dict[Role, tuple[str, slice, slice]] = {
            "gate": ("gate_up", slice(0, None, 2), slice(rank)),
            "up": ("gate_up", slice(1, None, 2), slice(rank, None)),
            "down": ("down", slice(None), slice(None)),
        }
        for expert in range(experts):
            for role, (stack, rows, ranks) in places.items():
                name = PREFIX + anatomy.projection_path(layer, expert, role)
                if f"{name}.lora_A.weight" in tensors:
                    low[stack][expert, ranks] = tensors[f"{name}.lora_A.weight"]
                    high[stack][rows, ranks, expert] = tensors[f"{name}.lora_B.weight"]
        for stack, level in (("gate_up", ".base_layer"), ("down", "")):
            name = f"{PREFIX}{anatomy.experts_path(layer)}{level}"
            stacked[f"{name}.lora_A.weight"] = low[stack].flatten(0, 1)
            stacked[f"{name}.lora_B.weight"] = high[stack].flatten(1, 2)
    return stacked
