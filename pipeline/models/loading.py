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
from pipeline.common.paths import CACHE
from pipeline.models.anatomy import Anatomy, Source
from pipeline.models.bases import Base
from pipeline.models.checkpoint import Checkpoint, read_language_config
from pipeline.models.complete import refuse_unread
from pipeline.models.experts.build import Form, fused_layer, linear_4bit, quantised, unfused_layer
from pipeline.models.experts.cache import PackedCache
from pipeline.models.experts.offload import LayerRing, keep_on_host, spread
from pipeline.models.experts.unfused import mark_rebuilt
from pipeline.models.families.registry import anatomy_of
from pipeline.models.report import assert_quantised, assert_routing

Experts = Literal["fused", "unfused"]
HEAD = "lm_head"
# Memory that was freed is reused whatever its size, and pinned layers are not rounded up to powers of two.
ALLOCATOR = "expandable_segments:True,pinned_max_round_threshold_mb:1"
# Where experts in NF4 are kept, and more layers than any model has.
PACKED, ALL = CACHE / "nf4", 10**6


def load_base(
    folder: Path,
    *,
    experts: Experts = "fused",
    dtype: torch.dtype,
    quantise: bool = False,
    offloaded: int = 0,
    device: torch.device | str | None = None,
    packed: PackedCache | None = None,
    active: int | None = None,
) -> Any:
    """A causal language model in eval mode with every parameter frozen.

    experts: the fast path or the reference path. quantise: NF4 with double quantisation of every linear layer
    but the output head, experts included; routers, norms and embeddings stay in `dtype`. offloaded: so many layers
    (ALL: each) stay in page-locked host memory and are copied a layer ahead: their quantised fused experts, or an
    unquantised dense model's linear layers. device: a GPU where there is one, unless given. packed: where quantised
    fused experts are kept. active: the experts that a token is routed to, in place of the configuration's. Raises
    UserError for a checkpoint that is missing, damaged, of another shape or of an unknown family.
    """
    from transformers import GenerationConfig

    config = read_language_config(folder, active)
    with Checkpoint(folder) as source:
        model = build(
            config,
            source,
            experts=experts,
            dtype=dtype,
            quantise=quantise,
            offloaded=offloaded,
            device=device,
            packed=packed,
        )
        refuse_unread(source, config)
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
    offloaded: int = 0,
    device: torch.device | str | None = None,
    packed: PackedCache | None = None,
) -> Any:
    """The model of `config` with its tensors from `source`; arguments as for `load_base`."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    anatomy = anatomy_of(config)
    if offloaded and (anatomy.dense == quantise or experts == "unfused"):
        raise UserError("layers are kept in host memory of quantised, fused experts, or of an unquantised dense model.")
    form = Form(
        dtype=dtype,
        device=torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        quantise=quantise,
    )
    # A checkpoint's own quantisation (gpt-oss: MXFP4) is undone while reading.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        for layer in anatomy.moe_layers:
            model.get_submodule(anatomy.block_path(layer)).experts = nn.Identity()
    on_host = [anatomy.adaptable_layers[place] for place in spread(offloaded, len(anatomy.adaptable_layers))]
    _fill_rest(model, anatomy, source, form, on_host if anatomy.dense else [])
    for layer in anatomy.moe_layers:
        block: Any = (
            fused_layer(config, source, layer, form, packed, offloaded=layer in on_host)
            if experts == "fused"
            else unfused_layer(config, source, layer, form)
        )
        model.get_submodule(anatomy.block_path(layer)).experts = block
    if on_host and anatomy.dense:
        LayerRing(keep_on_host([model.get_submodule(anatomy.layer_path(layer)) for layer in on_host], form.device))
    elif on_host:
        LayerRing([model.get_submodule(anatomy.experts_path(layer)).packed for layer in on_host])
    if not anatomy.dense:
        mark_rebuilt(model)
    model.tie_weights()
    model.requires_grad_(False).eval().to(form.device)
    assert_routing(model)
    if quantise:
        assert_quantised(model)
    return model


def _fill_rest(model: Any, anatomy: Anatomy, source: Source, form: Form, on_host: list[int]) -> None:
    """Everything but the experts: attention, routers, norms, embeddings, head.

    on_host: layers whose linear modules are not put on the device.
    """
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    waiting = tuple(f"{anatomy.layer_path(layer)}." for layer in on_host)
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
            stays = waiting and name.startswith(waiting) and path in linears and leaf == "weight"
            setattr(module, leaf, nn.Parameter(tensor if stays else tensor.to(form.device), requires_grad=False))


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


def load_frozen(base: Base, precision: str, device: torch.device, *, offloaded: int = 0) -> Any:
    """The base in eval mode, every parameter frozen, in the study's precision; `offloaded` as for `load_base`.

    Its experts in NF4 come from this machine's cache, where another run left them.
    """
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    packed = PackedCache(PACKED, base.hashes, dtype, device) if precision == "nf4" else None
    return load_base(
        base.path,
        dtype=dtype,
        quantise=precision == "nf4",
        offloaded=offloaded,
        device=device,
        packed=packed,
        active=base.active,
    )
