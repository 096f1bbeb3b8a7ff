"""The reference path: one `nn.Linear` per projection and expert, as in transformers 4.

transformers 5 fuses a layer's experts into two 3-D parameters, which bitsandbytes does not quantise and PEFT
cannot adapt one by one. Here every projection is a module again: anything that knows
linear layers works on it, and PEFT adapts any subset of experts by name. It is slow (a Python loop over
experts) and simple; the fused path (`fused.py`) is checked against it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.models.anatomy import REBUILT_PREFIX, ROLES, Anatomy, ExpertWeights, Role
from pipeline.models.families.registry import anatomy_of


class Expert(nn.Module):
    """One gated feed-forward network; its linear layers carry the family's names (w1, gate_proj)."""

    def __init__(self, anatomy: Anatomy, activation: Callable[..., torch.Tensor], linear: Callable[..., nn.Linear]):
        super().__init__()
        self._activation = activation
        self._names = anatomy.family.projections
        for role, name in self._names.items():
            out_features, in_features = anatomy.shape(role)
            self.add_module(name, linear(in_features, out_features, anatomy.family.bias))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, hidden) -> (rows, hidden)."""
        gate, up, down = (getattr(self, self._names[role]) for role in ROLES)
        return down(self._activation(gate(rows), up(rows)))


class UnfusedExperts(nn.ModuleList):
    """A layer's experts as modules named by their index, called one after another."""

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Route (tokens, hidden) through each token's experts: index and weights are (tokens, active).

        Rows are sorted by expert and summed in a fixed order, so the result does not depend on atomics.
        """
        tokens, active = index.shape
        order = index.flatten().argsort(stable=True)
        counts = torch.bincount(index.flatten(), minlength=len(self)).tolist()
        parts = [
            expert(rows)
            for expert, rows in zip(self, hidden[order // active].split(counts), strict=True)
            # An expert that learns runs on no rows too: its gradient is zero then, not missing, and the
            # optimizer treats it the same way whether or not a batch reached it.
            if len(rows) or any(parameter.requires_grad for parameter in expert.parameters())
        ]
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        out = torch.cat(parts)[inverse].view(tokens, active, -1)
        return (out * weights.unsqueeze(-1)).sum(dim=1).to(hidden.dtype)


def mark_rebuilt(model: nn.Module) -> None:
    """Keep transformers' and PEFT's fused-expert rewrites off a model whose experts this project rebuilt."""
    config: Any = model.config
    if not config.model_type.startswith(REBUILT_PREFIX):
        config.model_type = REBUILT_PREFIX + config.model_type


def fill(experts: UnfusedExperts, anatomy: Anatomy, weights: ExpertWeights) -> None:
    """Give every linear layer its slice of the fused weights (shared, not copied)."""
    names, width = anatomy.family.projections, anatomy.width
    for index, expert in enumerate(experts):
        gate, up = weights.gate_up[index, :width], weights.gate_up[index, width:]
        _set(expert, names, "weight", gate, up, weights.down[index])
        if weights.gate_up_bias is not None and weights.down_bias is not None:
            gate_bias, up_bias = weights.gate_up_bias[index, :width], weights.gate_up_bias[index, width:]
            _set(expert, names, "bias", gate_bias, up_bias, weights.down_bias[index])


def _set(expert: nn.Module, names: dict[Role, str], kind: str, *tensors: torch.Tensor) -> None:
    for role, tensor in zip(ROLES, tensors, strict=True):
        setattr(getattr(expert, names[role]), kind, nn.Parameter(tensor, requires_grad=False))


def new_unfused(config: Any, linear: Callable[..., nn.Linear] = nn.Linear) -> UnfusedExperts:
    """One layer's experts without storage (meta device), to be filled by `fill` or by a loader."""
    anatomy = anatomy_of(config)
    activation = anatomy.family.activation(config)
    with torch.device("meta"):
        return UnfusedExperts(Expert(anatomy, activation, linear) for _ in range(anatomy.experts))


def unfuse(model: nn.Module) -> Anatomy:
    """Replace the fused experts of a live transformers model, in place. A dense model is left as it is.

    The frozen base stays the same tensors: nothing is copied where the family's layout is this project's.
    """
    anatomy = anatomy_of(model.config)
    for layer in anatomy.moe_layers:
        block: Any = model.get_submodule(anatomy.block_path(layer))
        experts = new_unfused(model.config)
        fill(experts, anatomy, anatomy.family.read_fused(block.experts))
        block.experts = experts.train(block.training)
    if not anatomy.dense:
        mark_rebuilt(model)
    return anatomy
