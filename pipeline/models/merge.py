"""Add an adapter to its base's checkpoint, tensor by tensor, for servers that cannot apply it.

Needs no GPU and no model: the memory of one output shard. The result is a standard checkpoint under the names
and in the layout of the base's, 16 bits throughout (gpt-oss's MXFP4 experts are unpacked).
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_path, read_json, write_json
from pipeline.models.adapters import PREFIX, read_adapter
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.families.registry import anatomy_of, language_model, routing_to

SHARD_BYTES = 4 * 2**30
INDEX = "model.safetensors.index.json"


def merge_adapter(
    base: Path,
    adapter: Path | None,
    target: Path,
    shard_bytes: int = SHARD_BYTES,
    prepare: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
    active: int | None = None,
) -> None:
    """Write base + scale * B A to `target`. Sums in fp32, stored in the base's own type.

    adapter: None for the base alone, in the same form. prepare: what is done to each of the base's tensors, by name,
    before anything is added to it. active: the experts a token that the written configuration says, in place of the
    base's. Raises UserError when either folder cannot be read or the adapter names tensors that the base does not have;
    `target` holds no index, and so is no checkpoint, until the last shard is whole.
    """
    from safetensors.torch import save_file
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    anatomy = anatomy_of(config)
    pending: dict[str, list[tuple[Any, Any]]] = {}
    scale = 0.0
    if adapter is not None:
        settings, tensors, _ = read_adapter(adapter, anatomy)
        rank = settings["r"]
        scale = settings["lora_alpha"] / (math.sqrt(rank) if settings["use_rslora"] else rank)
        pending = _by_base_tensor(tensors, anatomy.family)
    target.mkdir(parents=True, exist_ok=True)
    (target / INDEX).unlink(missing_ok=True)
    shard: dict[str, torch.Tensor] = {}
    where: dict[str, str] = {}

    def flush() -> None:
        if not shard:
            return
        file = f"model-{len(set(where.values())) + 1:05}.safetensors"
        with atomic_path(target / file) as temporary:
            save_file(shard, temporary, metadata={"format": "pt"})
        where.update(dict.fromkeys(shard, file))
        shard.clear()

    with Checkpoint(base) as source:
        for stored in source.names():
            found = anatomy.family.read_stored(source, stored)
            if found is None:
                found = stored, source.tensor(stored)
            name, tensor = found
            if tensor is None:
                continue
            if prepare is not None:
                tensor = prepare(name, tensor)
            for view, factors in pending.pop(name, []):
                _add(tensor, view, factors, scale)
            shard[name] = tensor.contiguous()
            if sum(held.numel() * held.element_size() for held in shard.values()) >= shard_bytes:
                flush()
    if pending:
        raise UserError(f"{adapter} adapts {min(pending)}, which {base} does not have.")
    flush()
    copy_rest(base, target, active)
    write_json(target / INDEX, {"metadata": {}, "weight_map": dict(sorted(where.items()))})


def _by_base_tensor(tensors: dict[str, torch.Tensor], family: Any) -> dict[str, list[tuple[Any, Any]]]:
    """Base tensor -> what is done to it: (view into it, A and B) or, for a router, (None, its new values)."""
    pending: dict[str, list[tuple[Any, Any]]] = {}
    for name, tensor in tensors.items():
        path = name.removeprefix(PREFIX)
        if path.endswith(".lora_B.weight"):
            continue
        if not path.endswith(".lora_A.weight"):
            pending.setdefault(path, []).append((None, tensor))
            continue
        path = path.removesuffix(".lora_A.weight")
        stored, view = family.slot(path)
        factors = tensor, tensors[f"{PREFIX}{path}.lora_B.weight"]
        pending.setdefault(stored, []).append((view, factors))
    return pending


def _add(tensor: torch.Tensor, view: Any, factors: Any, scale: float) -> None:
    if view is None:
        tensor.copy_(factors)
        return
    low, high = factors
    part = view(tensor)
    part.copy_(part.float() + scale * (high.float() @ low.float()))


def copy_rest(base: Path, target: Path, active: int | None = None) -> None:
    """Config (of the language model alone, without the base's own quantisation), tokenizer, chat template.

    active: the experts that a token is routed to, in place of the base's.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for file in sorted([*base.glob("*.json"), *base.glob("*.jinja"), *base.glob("tokenizer*")]):
        if file.name not in (INDEX, "config.json"):
            shutil.copyfile(file, target / file.name)
    config = read_json(base / "config.json")
    config.pop("quantization_config", None)
    whole = AutoConfig.from_pretrained(base, trust_remote_code=False)
    part, _ = language_model(whole)
    if part is not whole:
        config = part.to_dict() | {"architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[part.model_type]]}
    if active is not None:
        config[anatomy_of(routing_to(part, active)).family.active_field] = active
    write_json(target / "config.json", config)
