"""Build one layer's experts from a checkpoint: fused or unfused, in NF4 or as they are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.models.anatomy import ROLES, Anatomy, ExpertWeights, Role, Source
from pipeline.models.experts.cache import PackedCache
from pipeline.models.experts.fused import FusedExperts
from pipeline.models.experts.stacks import PLACE, NF4Stack, PackedExperts
from pipeline.models.experts.unfused import UnfusedExperts, fill, new_unfused
from pipeline.models.families.registry import anatomy_of


@dataclass(frozen=True, kw_only=True)
class Form:
    """How weights are kept.

    dtype: of what is not quantised, and of the products. quantise: NF4.
    """

    dtype: torch.dtype
    device: torch.device
    quantise: bool


def linear_4bit(in_features: int, out_features: int, bias: bool, dtype: torch.dtype) -> nn.Linear:
    """A bitsandbytes NF4 layer without storage, to be given a `quantised` weight."""
    from bitsandbytes.nn import Linear4bit

    with torch.device("meta"):
        linear = Linear4bit(in_features, out_features, bias=bias, compute_dtype=dtype, quant_type="nf4")
    # On CPUs with AVX512-BF16 the weights would be repacked in eval mode, and a loaded model would differ
    # from the one in memory by 2e-3.
    linear.support_avx512bf16_for_cpu = False
    return linear


def quantised(weight: torch.Tensor, device: torch.device) -> nn.Parameter:
    """A weight in NF4 with double quantisation, on `device`."""
    from bitsandbytes.nn import Params4bit

    parameter: Any = Params4bit(weight.contiguous(), requires_grad=False, compress_statistics=True, quant_type="nf4")
    return parameter.to(device)


def _experts(
    source: Source, anatomy: Anatomy, layer: int
) -> Iterator[tuple[int, Role, torch.Tensor, torch.Tensor | None]]:
    """(expert, role, weight, bias) of every projection of a layer, one expert in memory at a time."""
    prefix = anatomy.checkpoint_name(anatomy.experts_path(layer))
    for expert in range(anatomy.experts):
        for role, (weight, bias) in anatomy.family.read_expert(source, anatomy, prefix, expert).items():
            yield expert, role, weight, bias


class _Biases:
    """The biases of a layer, gathered into the two stacks; None where the family has none."""

    def __init__(self, anatomy: Anatomy, form: Form):
        self.anatomy = anatomy
        empty: Any = {"dtype": form.dtype, "device": form.device}
        self.gate_up = torch.empty(anatomy.experts, 2 * anatomy.width, **empty) if anatomy.family.bias else None
        self.down = torch.empty(anatomy.experts, anatomy.hidden, **empty) if anatomy.family.bias else None

    def put(self, expert: int, role: Role, bias: torch.Tensor | None) -> None:
        """Store one projection's bias, (out,)."""
        stack = self.down if role == "down" else self.gate_up
        if stack is not None and bias is not None:
            stack[expert, self.anatomy.rows(role)] = bias.to(stack)


def _plain_weights(source: Source, anatomy: Anatomy, layer: int, form: Form) -> ExpertWeights:
    empty: Any = {"dtype": form.dtype, "device": form.device}
    stacks = {
        "gate_up": torch.empty(anatomy.experts, 2 * anatomy.width, anatomy.hidden, **empty),
        "down": torch.empty(anatomy.experts, anatomy.hidden, anatomy.width, **empty),
    }
    biases = _Biases(anatomy, form)
    for expert, role, weight, bias in _experts(source, anatomy, layer):
        stacks[PLACE[role][0]][expert, anatomy.rows(role)] = weight.to(**empty)
        biases.put(expert, role, bias)
    return ExpertWeights(
        gate_up=stacks["gate_up"], down=stacks["down"], gate_up_bias=biases.gate_up, down_bias=biases.down
    )


def fused_layer(
    config: Any, source: Source, layer: int, form: Form, cache: PackedCache | None, *, offloaded: bool
) -> FusedExperts:
    """A layer's experts as stacks, for the fast path; from `cache` where they are there, and into it where not."""
    anatomy = anatomy_of(config)
    activation = anatomy.family.activation(config)
    if not form.quantise:
        return FusedExperts.of(_plain_weights(source, anatomy, layer, form), activation)
    packed = PackedExperts(anatomy, form.dtype, form.device, offloaded=offloaded)
    biases = _packed_weights(source, anatomy, layer, form, packed, cache)
    stacks = NF4Stack(packed, "gate_up"), NF4Stack(packed, "down")
    return FusedExperts(*stacks, activation, biases.get("gate_up"), biases.get("down"), packed=packed)


def _packed_weights(
    source: Source, anatomy: Anatomy, layer: int, form: Form, packed: PackedExperts, cache: PackedCache | None
) -> dict[str, torch.Tensor]:
    """Fill `packed` with a layer's experts, quantised now or before; returns the biases, by stack that has them."""
    if cache is not None and (found := cache.read(layer, packed)) is not None:
        source.skip(anatomy.checkpoint_name(anatomy.experts_path(layer)) + ".")
        for role in ROLES:
            # Where a layer's experts are one tensor, it need not lie below their path.
            source.skip(anatomy.family.slot(anatomy.checkpoint_name(anatomy.projection_path(layer, 0, role)))[0])
        return {name: bias.to(form.device) for name, bias in found.items()}
    gathered = _Biases(anatomy, form)
    for expert, role, weight, bias in _experts(source, anatomy, layer):
        packed.put(expert, role, weight.to(form.dtype))
        gathered.put(expert, role, bias)
    biases = {"gate_up": gathered.gate_up, "down": gathered.down}
    made = {name: bias for name, bias in biases.items() if bias is not None}
    if cache is not None:
        cache.write(layer, packed, made)
    return made


def unfused_layer(config: Any, source: Source, layer: int, form: Form) -> UnfusedExperts:
    """A layer's experts as linear modules, for the reference path."""
    anatomy = anatomy_of(config)
    if not form.quantise:
        block = new_unfused(config)
        fill(block, anatomy, _plain_weights(source, anatomy, layer, form))
        return block
    block = new_unfused(config, lambda ins, outs, bias: linear_4bit(ins, outs, bias, form.dtype))
    for expert, role, weight, bias in _experts(source, anatomy, layer):
        linear = getattr(block[expert], anatomy.family.projections[role])
        linear.weight = quantised(weight.to(form.dtype), form.device)
        if bias is not None:
            linear.bias = nn.Parameter(bias.to(form.device, form.dtype), requires_grad=False)
    return block
