"""Full fine-tuning: a base with every parameter trainable, and the standard checkpoint that comes of it."""

import shutil
from pathlib import Path
from typing import Any

import torch

from pipeline.common.errors import UserError
from pipeline.models.checkpoint import Checkpoint, read_config
from pipeline.models.families.registry import anatomy_of, routing_to
from pipeline.models.finite import refuse_non_finite
from pipeline.models.loading import load_base
from pipeline.models.merge import copy_rest
from pipeline.models.report import assert_routing


def load_trainable(path: Path, device: torch.device, active: int | None = None) -> Any:
    """The model in `path` in fp32, every parameter trainable: transformers' own modules, MoE experts as it fuses them.

    Arithmetic in 16 bits is autocast's (the trainer's): updates would be lost in 16-bit weights. active: the experts
    that a token is routed to, in place of the configuration's. Raises UserError for a checkpoint that is stored
    quantised, or cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    config = read_config(path)
    if hasattr(config, "quantization_config"):
        raise UserError(f"{path} is stored quantised, and quantised weights cannot be trained: give the run a lora.")
    if anatomy_of(config).dense:
        model = load_base(path, dtype=torch.float32, device=device, active=active)
    else:
        fused: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=routing_to(config, active),
            dtype=torch.float32,
            attn_implementation="sdpa",
            experts_implementation="grouped_mm",
            trust_remote_code=False,
        )
        assert_routing(fused)
        model = fused.to(device)
    return model.requires_grad_(True)


def parameter_manifest(model: Any) -> list[dict[str, Any]]:
    """Every trainable parameter: name, shape, dtype, number of values; sorted by name."""
    return [
        {
            "name": name,
            "shape": list(parameter.shape),
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "values": parameter.numel(),
        }
        for name, parameter in sorted(model.named_parameters())
        if parameter.requires_grad
    ]


def save_model(model: Any, base: Path, folder: Path, active: int | None = None) -> None:
    """Write a fine-tuned model as a standard checkpoint: tensors named and typed as those of `base`, and its tokenizer.

    active: the experts a token that it was trained with, where that is not the base's number: its configuration says
    so. The folder appears whole or not at all. The model is in the base's type afterwards. Raises UserError when a
    parameter is not finite.
    """
    refuse_non_finite(folder, dict(model.named_parameters()))
    with Checkpoint(base) as source:
        dtype = source.tensor("model.embed_tokens.weight").dtype
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(dtype).save_pretrained(partial)
    copy_rest(base, partial, active)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
