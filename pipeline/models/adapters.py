"""Adapters on chosen experts: attach, list, save, load; the same for the unfused and the fused path.

On disk an adapter is always PEFT's: one LoRA pair a projection and expert under the names that the family's
checkpoints use, so PEFT, merging (pipeline/models/merge.py) and vLLM read it whichever path trained it.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_path, read_json, write_json
from pipeline.models.anatomy import ROLES, Anatomy
from pipeline.models.bases import Base
from pipeline.models.experts.fused import FusedExperts, FusedExpertsLora
from pipeline.models.families.registry import anatomy_of
from pipeline.models.finite import refuse_non_finite
from pipeline.models.lora import lora_config
from pipeline.models.spec import AdapterSpec, Selection, select

if TYPE_CHECKING:
    from peft import PeftModel

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."


def attach(
    model: Any,
    spec: AdapterSpec,
    *,
    seed: int,
    counts: Mapping[int, Sequence[int]] | None = None,
) -> "PeftModel":
    """Wrap `model` so that exactly the parameters that `spec` names are trainable, in fp32.

    LoRA A is drawn from `seed` and the tensor's name, uniform within 1/sqrt(in) (PEFT's default, Kaiming), B
    is zero: they depend neither on path and device nor on what else was drawn. Raises UserError for a bad
    spec, RuntimeError if what came out is not exactly what was asked for.
    """
    anatomy = anatomy_of(model.config)
    selection = select(spec, anatomy, counts)
    wrapped = _wrap(model, anatomy, selection, spec.rank, spec.alpha, spec.rslora)
    with torch.no_grad():
        for name, tensor in adapter_tensors(wrapped).items():
            if name.endswith(".lora_A.weight"):
                key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big", signed=True))
                bound = 1 / math.sqrt(tensor.shape[1])
                tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator))
    return wrapped


def _wrap(model: Any, anatomy: Anatomy, selection: Selection, rank: int, alpha: float, rslora: bool) -> "PeftModel":
    from peft import get_peft_model

    fused = any(isinstance(module, FusedExperts) for module in model.modules())
    unready = [
        layer
        for layer in selection.experts
        if not anatomy.dense and not fused and not hasattr(model.get_submodule(anatomy.experts_path(layer)), "0")
    ]
    if unready:
        raise RuntimeError("experts are still transformers' fused parameters: call unfuse() or fuse() first")
    config = lora_config(anatomy, selection, rank, alpha, rslora, fused=fused)
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    assert_trainable(wrapped, anatomy, selection, rank)
    return wrapped


def adapter_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Saved name -> tensor of everything the adapter holds, sorted by name, sharing storage with the model.

    Fused adapters are seen one expert at a time here, under the names that the unfused path has.
    """
    anatomy = anatomy_of(model.config)
    tensors: dict[str, torch.Tensor] = {}

    def put(path: str, suffix: str, tensor: torch.Tensor) -> None:
        tensors[f"{anatomy.checkpoint_name(path)}.{suffix}"] = tensor.detach()

    for path, module in model.named_modules():
        if isinstance(module, FusedExpertsLora):
            for which in ("lora_A", "lora_B"):
                for role, stack in getattr(module, which)["default"].items():
                    for row, expert in enumerate(module.chosen):
                        name = anatomy.family.projections[role]
                        put(f"{path}.{expert}.{name}", f"{which}.weight", stack[row])
        elif isinstance(module, LoraLayer):
            for which in ("lora_A", "lora_B"):
                put(path, f"{which}.weight", getattr(module, which)["default"].weight)
        elif isinstance(module, ModulesToSaveWrapper):
            for name, tensor in module.modules_to_save["default"].named_parameters():
                put(path, name, tensor)
    return dict(sorted(tensors.items()))


def trainable_manifest(model: Any) -> list[dict[str, Any]]:
    """Every trained tensor as it will be saved: name, shape, dtype, number of values; sorted by name."""
    return [
        {
            "name": name,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "values": tensor.numel(),
        }
        for name, tensor in adapter_tensors(model).items()
    ]


def assert_trainable(model: Any, anatomy: Anatomy, selection: Selection, rank: int) -> None:
    """Raise RuntimeError unless the trainable parameters are exactly those of `selection`, by name and count.

    Libraries have silently trained no expert (peft #3009), or all of them, where some were asked for.
    """
    expected: dict[str, tuple[int, int] | None] = {}
    for path, shape in selection.linear_paths(anatomy).items():
        saved = anatomy.checkpoint_name(PREFIX + path)
        expected[f"{saved}.lora_A.weight"] = (rank, shape[1]) if shape else None
        expected[f"{saved}.lora_B.weight"] = (shape[0], rank) if shape else None
    found = adapter_tensors(model)
    routers = tuple(f"{anatomy.checkpoint_name(PREFIX + anatomy.router_path(layer))}." for layer in selection.routers)
    lora = {name for name in found if not (routers and name.startswith(routers))}
    problems = [f"missing {name}" for name in sorted(expected.keys() - lora)]
    problems += [f"unexpected {name}" for name in sorted(lora - expected.keys())]
    problems += [
        f"{name} is {tuple(found[name].shape)}, not {shape}"
        for name, shape in sorted(expected.items())
        if shape and name in found and tuple(found[name].shape) != shape
    ]
    problems += [f"no trainable router at {path}" for path in routers if not any(n.startswith(path) for n in found)]
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    listed = sum(tensor.numel() for tensor in found.values())
    if trainable != listed:
        problems.append(f"{trainable} parameters are trainable, the adapter lists {listed}")
    if problems:
        raise RuntimeError(
            f"the adapter is not what was asked for ({len(problems)} problems): {'; '.join(problems[:5])}"
        )


def save_adapter(model: Any, folder: Path, *, base: str, revision: str | None) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`: equal adapters give equal bytes.

    base: the base model's repository id, or its path relative to the project; revision: its full commit SHA
    (None for a base made by this pipeline). Raises UserError when `base` is an absolute path, a value is not finite,
    or the folder cannot be written.
    """
    from safetensors.torch import save_file

    if Path(base).is_absolute():
        raise UserError(f"base {base} is an absolute path; give it relative to the project or as a repository id.")
    anatomy = anatomy_of(model.config)
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in adapter_tensors(model).items()}
    refuse_non_finite(folder / WEIGHTS, tensors)
    trained = model.peft_config["default"]
    config = lora_config(anatomy, _selection_of(tensors, anatomy), trained.r, trained.lora_alpha, trained.use_rslora)
    config.base_model_name_or_path, config.revision, config.inference_mode = base, revision, True
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    content = config.to_dict()
    write_json(
        folder / CONFIG,
        {key: sorted(value) if isinstance(value, set) else value for key, value in content.items()},
    )


def load_adapter(model: Any, folder: Path, *, base: Base | None = None) -> "PeftModel":
    """Put a saved adapter on a base whose experts are unfused or fused; nothing is trainable afterwards.

    base: what `model` was loaded from; None leaves unchecked whether the adapter was trained on it. Raises UserError
    when files are missing or damaged, or the adapter does not fit the model or was trained on another base.
    """
    wrapped = continue_adapter(model, folder, base=base)
    for module in wrapped.modules():
        if isinstance(module, ModulesToSaveWrapper):
            # Trained in fp32; computed in the base's type, as under autocast while training.
            module.modules_to_save.to(next(module.original_module.parameters()).dtype)
    wrapped.requires_grad_(False)
    return wrapped.eval()


def remove_adapter(model: Any) -> Any:
    """The base that a model with an adapter stands on, as it was before the adapter was put on."""
    return model.unload()


def fix_factors(model: Any) -> None:
    """Make the low-rank factors of fused experts once, for a model that is trained no further."""
    for module in model.modules():
        if isinstance(module, FusedExpertsLora):
            module.fix()


def continue_adapter(model: Any, folder: Path, *, base: Base | None = None) -> "PeftModel":
    """Put a saved adapter on a base to train it further: exactly its tensors are trainable, in fp32.

    Raises UserError as `load_adapter` does.
    """
    anatomy = anatomy_of(model.config)
    config, saved, selection = read_adapter(folder, anatomy)
    named = config["base_model_name_or_path"], config["revision"]
    if base is not None and named != (base.name, base.revision):
        raise UserError(
            f"{folder / CONFIG} names the base {_named(*named)}, but the model is {_named(base.name, base.revision)}: "
            "an adapter answers on the base that it was trained on alone; train it again, or give it its own."
        )
    wrapped = _wrap(model, anatomy, selection, config["r"], config["lora_alpha"], config["use_rslora"])
    tensors = adapter_tensors(wrapped)
    unfit = [name for name in tensors.keys() | saved.keys() if name not in tensors or name not in saved]
    unfit += [name for name in tensors.keys() & saved.keys() if tensors[name].shape != saved[name].shape]
    if unfit:
        raise UserError(f"{folder} does not fit this model: {min(unfit)} is absent or has another shape.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])
    return wrapped


def _named(base: str, revision: str | None) -> str:
    return base if revision is None else f"{base} at {revision[:12]}"


def read_adapter(folder: Path, anatomy: Anatomy) -> tuple[dict[str, Any], dict[str, torch.Tensor], Selection]:
    """A saved adapter's configuration, tensors, and what they adapt.

    Raises UserError when files are missing or damaged, hold values that are not finite, or name layers or experts that
    `anatomy` does not have.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_json(folder / CONFIG)
    try:
        saved = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise UserError(f"{folder / WEIGHTS} does not exist; run the stage that makes it.") from error
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} is damaged ({error}); delete it and run again.") from error
    refuse_non_finite(folder / WEIGHTS, saved)
    selection = _selection_of(saved, anatomy)
    experts = {x for layer in selection.experts.values() for x in layer if x is not None and x >= anatomy.experts}
    layers = {x for x in (*selection.experts, *selection.attention) if x >= anatomy.layers}
    if experts or layers:
        raise UserError(
            f"{folder} adapts layers {sorted(layers)} or experts {sorted(experts)} "
            f"that this {anatomy.family.model_type} model does not have."
        )
    return config, saved, selection


def _selection_of(names: Mapping[str, Any], anatomy: Anatomy) -> Selection:
    """Read the selection back from the saved names: they say everything but rank and scale."""
    roles = {name: role for role, name in anatomy.family.projections.items()}
    experts: dict[int, set[int | None]] = {}
    projections, attention, routers = set(), set(), set()
    for name in names:
        found = re.fullmatch(
            re.escape(PREFIX) + r"model\.layers\.(\d+)\.(\w+)\.(?:experts\.(\d+)\.)?([\w.]+?)(\.lora_[AB])?\.\w+",
            name,
        )
        if found is None:
            raise UserError(f"adapter tensor {name} is not one that this project writes.")
        layer, block, expert, leaf, lora = found.groups()
        if block == "self_attn":
            attention.add(int(layer))
        elif lora is None:
            routers.add(int(layer))
        elif leaf in roles:
            experts.setdefault(int(layer), set()).add(None if expert is None else int(expert))
            projections.add(roles[leaf])
        else:
            raise UserError(f"adapter tensor {name} is no part of a {anatomy.family.model_type} model.")
    return Selection(
        experts={layer: tuple(sorted(chosen, key=lambda x: x or 0)) for layer, chosen in sorted(experts.items())},
        projections=tuple(role for role in ROLES if role in projections),
        attention=tuple(sorted(attention)),
        routers=tuple(sorted(routers)),
    )
