"""What vLLM loads: one checkpoint per run in 16 bits, the adapter merged into the base that it was trained on.

The engine can apply adapters itself, but not those on experts reliably (vllm #31534, #41384), and a base without
adapters runs through other kernels than one with (vllm #42008, #49063). So every adapter is merged, and a base and its
fine-tuned models are the same kind of checkpoint to the engine.

Merging rounds: the sum is stored in 16 bits, and of an adapter that changes little most is lost
(tests/sampling/test_huggingface.py measures it), along training most at its beginning (benchmarks/merging.py, by
arithmetic). So every hub study names transformers, which merges nothing; vLLM is exact for models of which every
parameter was trained. An adapter that was trained on a base in NF4 belongs to that base's rounded weights, so those are
written out in 16 bits: of the base alone, and of the base under every adapter.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.files import read_json, sha256_json
from pipeline.common.fingerprints import code_hashes, folder_hashes, library_versions
from pipeline.common.paths import CACHE
from pipeline.sampling.backend import Model

if TYPE_CHECKING:
    import torch

MERGED = CACHE / "merged"
INDEX = "model.safetensors.index.json"


def checkpoint_folder(model: Model) -> Path:
    """Where the model's checkpoint is, or will be: the base's own folder where it can be served as it is."""
    config = read_json(model.base.path / "config.json")
    # Packed weights, a model that also sees, other routing than its configuration says: what is served is none of it.
    rewritten = "quantization_config" in config or "text_config" in config or model.base.active is not None
    if model.adapter is None and model.precision != "nf4" and not rewritten:
        return model.base.path
    adapter = folder_hashes(model.adapter) if model.adapter else None
    made_by = [code_hashes("models", "sampling/merged.py"), library_versions()]
    return MERGED / sha256_json([dict(model.base.hashes), model.base.active, adapter, model.precision, *made_by])


def write_checkpoint(model: Model, folder: Path) -> None:
    """Write the model's checkpoint to `folder`, if it is not there. Raises UserError as `merge_adapter` does."""
    # The index is written last.
    if folder == model.base.path or (folder / INDEX).exists():
        return
    from pipeline.models.merge import merge_adapter

    prepare = rounding(model.base.path) if model.precision == "nf4" else None
    merge_adapter(model.base.path, model.adapter, folder, prepare=prepare, active=model.base.active)


def remove_checkpoint(folder: Path) -> None:
    """Give back the disk of a checkpoint that was written for the engine; never the base's own."""
    if folder.parent == MERGED:
        shutil.rmtree(folder, ignore_errors=True)


def rounding(base: Path) -> "Callable[[str, torch.Tensor], torch.Tensor]":
    """What NF4 makes of a tensor of the base's checkpoint, by name: the weights that `load_base` quantises.

    Each projection is rounded by itself, as it is when the model is loaded; others come back as they are.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from transformers import AutoConfig

    from pipeline.models.families.registry import anatomy_of

    anatomy = anatomy_of(AutoConfig.from_pretrained(base, trust_remote_code=False))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    views: dict[str, list[Callable[[torch.Tensor], torch.Tensor]]] = {}
    for path in _quantised_paths(anatomy):
        stored, view = anatomy.family.slot(anatomy.checkpoint_name(path))
        views.setdefault(stored, []).append(view)

    def rounded(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name not in views:
            return tensor
        tensor = tensor.to(torch.bfloat16, copy=True)
        for view in views[name]:
            part = view(tensor)
            codes = quantize_4bit(part.to(device).contiguous(), compress_statistics=True, quant_type="nf4")
            part.copy_(dequantize_4bit(*codes))
        return tensor

    return rounded


def _quantised_paths(anatomy: Any) -> list[str]:
    """Module paths of every projection held in NF4: attention; experts and shared ones, or the dense block."""
    paths: list[str] = []
    for layer in range(anatomy.layers):
        paths += anatomy.attention_paths(layer)
        if layer in anatomy.moe_layers:
            paths += anatomy.shared_paths(layer)
        experts = range(anatomy.experts) if layer in anatomy.moe_layers else [None]
        paths += [
            anatomy.projection_path(layer, expert, role) for expert in experts for role in anatomy.family.projections
        ]
    return paths
