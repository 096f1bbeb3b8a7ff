"""Load a base model layer by layer, its experts fused or unfused, in 4 bits or as they are.

transformers' own loader leaves fused experts in 16 bit when asked for 4 (bitsandbytes #1849), so the model is
built empty and filled here: each tensor is read from the memory-mapped checkpoint, quantised if it is to
be, and let go. Host memory holds one expert at a time, never the 16-bit model.
"""

import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pipeline.common.errors import UserError
from pipeline.models.anatomy import Anatomy, Source
from pipeline.models.checkpoint import Checkpoint, checkpoint_folder
from pipeline.models.experts.build import Form, fused_layer, linear_4bit, quantised, unfused_layer
from pipeline.models.experts.offload import ExpertRing
from pipeline.models.experts.unfused import mark_rebuilt
from pipeline.models.families.registry import anatomy_of, language_model
from pipeline.models.report import assert_quantised

Experts = Literal["fused", "unfused"]
HEAD = "lm_head"
# Memory that was freed is reused whatever its size, and pinned layers are not rounded up to powers of two.
ALLOCATOR = "expandable_segments:True,pinned_max_round_threshold_mb:1"


def load_base(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    experts: Experts = "fused",
    dtype: torch.dtype,
    quantise: bool = False,
    offload: bool = False,
    device: torch.device | str | None = None,
) -> Any:
    """A causal language model in eval mode with every parameter frozen.

    experts: the fast path or the reference path. quantise: NF4 with double quantisation of every linear layer
    but the output head, experts included; routers, norms and embeddings stay in `dtype`. offload: quantised
    fused experts stay in (pinned) host memory and are copied a layer ahead. device: a GPU where there is one,
    unless given. Raises UserError for a checkpoint that is missing, damaged, of another shape or of an
    unknown family.
    """
    from transformers import AutoConfig, GenerationConfig

    folder = checkpoint_folder(path_or_repo, revision)
    try:
        config, _ = language_model(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/config.json cannot be used: {str(error).splitlines()[0]}") from error
    with Checkpoint(folder) as source:
        model = build(config, source, experts=experts, dtype=dtype, quantise=quantise, offload=offload, device=device)
        left = [name for name in source.unread() if not name.endswith("rotary_emb.inv_freq")]
        # Tied checkpoints may still hold the copy that is not used.
        if set(left) - ({"lm_head.weight"} if config.tie_word_embeddings else set()):
            raise UserError(f"{folder} holds tensors that {config.model_type} has no place for, such as {left[0]}.")
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def build(
    config: Any,
    source: Source,
    *,
    experts: Experts,
    dtype: torch.dtype,
    quantise: bool = False,
    offload: bool = False,
    device: torch.device | str | None = None,
) -> Any:
    """The model of `config` with its tensors from `source`; arguments as for `load_base`."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    if offload and not (quantise and experts == "fused"):
        raise UserError("expert offload is for quantised, fused experts: set quantise and experts to match.")
    anatomy = anatomy_of(config)
    form = Form(
        dtype=dtype,
        device=torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        quantise=quantise,
        offload=offload,
    )
    # A checkpoint's own quantisation (gpt-oss: MXFP4) is undone while reading.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        for layer in anatomy.moe_layers:
            model.get_submodule(anatomy.block_path(layer)).experts = nn.Identity()
    _fill_rest(model, anatomy, source, form)
    build_layer = fused_layer if experts == "fused" else unfused_layer
    layers: list[Any] = [build_layer(config, source, layer, form) for layer in anatomy.moe_layers]
    for layer, block in zip(anatomy.moe_layers, layers, strict=True):
        model.get_submodule(anatomy.block_path(layer)).experts = block
    if offload:
        ExpertRing([block.packed for block in layers])
    if not anatomy.dense:
        mark_rebuilt(model)
    model.tie_weights()
    model.requires_grad_(False).eval().to(form.device)
    if quantise:
        assert_quantised(model)
    return model


def _fill_rest(model: Any, anatomy: Anatomy, source: Source, form: Form) -> None:
    """Everything but the experts: attention, routers, norms, embeddings, head."""
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, parameter in list(model.named_parameters()):
        saved = anatomy.checkpoint_name(name)
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        tensor = source.tensor(saved, tuple(parameter.shape)).to(form.dtype)
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        kept = path == HEAD or path.rpartition(".")[2] in anatomy.family.unquantised
        if form.quantise and path in linears and not kept and leaf == "weight":
            linear = linear_4bit(module.in_features, module.out_features, module.bias is not None, form.dtype)
            linear.weight = quantised(tensor, form.device)
            if module.bias is not None:
                linear.bias = module.bias
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, linear)
        else:
            setattr(module, leaf, nn.Parameter(tensor.to(form.device), requires_grad=False))


def training_device(precision: str) -> torch.device:
    """This process's GPU, where there is one and the precision is not float32, which is for CPUs.

    Toy models are that: they are slower on a GPU, and would differ in their last bits.
    """
    if precision == "float32" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch._C._accelerator_setAllocatorSettings(ALLOCATOR)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise UserError(
            f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}; bfloat16 needs 8.0 or more "
            "(Ampere and newer). Hide it with CUDA_VISIBLE_DEVICES= to use another."
        )
    return device


def load_frozen(path: Path, precision: str, device: torch.device, *, offload: bool = False) -> Any:
    """The base in eval mode, every parameter frozen, in the study's precision."""
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    return load_base(path, dtype=dtype, quantise=precision == "nf4", offload=offload, device=device)
