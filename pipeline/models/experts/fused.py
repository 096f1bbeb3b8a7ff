"""The fast path: a layer's experts stay one stack, multiplied group by group.

Tokens are sorted by expert. `FusedExperts` computes what `unfused.py` computes, in a few
grouped matrix products a layer instead of three products per expert. `FusedExpertsLora` adds the low-rank
delta of the chosen experts alone; its A and B are stacked over those experts, so that a layer has six trained
tensors however many experts are adapted, and gradients, optimizer steps and clipping do not pay a kernel per
expert. Which names they are saved under is settled in `pipeline/models/adapters.py`.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional

from pipeline.models.anatomy import Anatomy, ExpertWeights, Role
from pipeline.models.experts.grouped import Groups
from pipeline.models.experts.stacks import DenseStack, PackedExperts, Stack
from pipeline.models.experts.unfused import mark_rebuilt
from pipeline.models.families.registry import anatomy_of
from pipeline.models.spec import Selection

# CUDA's grouped kernels want every row 16 bytes long or a multiple of it: 8 values of bf16.
RANK_MULTIPLE = 8


class _Dispatch(torch.autograd.Function):
    """Copy each token's row to its `active` experts, sorted by expert.

    Indexing would do; its gradient would be an accumulating scatter. Every token has exactly `active` copies,
    so the gradient is a gather and a sum: faster, and the same bits on every run.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        ctx.tokens = len(hidden)
        return hidden.index_select(0, order // (len(order) // len(hidden)))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse).view(ctx.tokens, -1, grad.shape[-1]).sum(dim=1), None, None


class _Permute(torch.autograd.Function):
    """Rows reordered by `forward_order`; the gradient by its inverse, `backward_order`."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, forward_order: torch.Tensor, backward_order: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(backward_order)
        return rows.index_select(0, forward_order)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (backward_order,) = ctx.saved_tensors
        return grad.index_select(0, backward_order), None, None


class _FrozenLinear(torch.autograd.Function):
    """rows @ W[expert].T for frozen stacked W, which is read anew for the gradient and never kept for it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, stack: Stack, groups: Groups) -> torch.Tensor:
        ctx.stack, ctx.groups = stack, groups
        return groups.product(rows, stack.read().transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.groups.product(grad.contiguous(), ctx.stack.read()), None, None


class FusedExperts(nn.Module):
    """A layer's frozen experts, to whose products a `Delta` may add."""

    def __init__(
        self,
        gate_up: Stack,
        down: Stack,
        activation: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        gate_up_bias: torch.Tensor | None = None,
        down_bias: torch.Tensor | None = None,
        packed: PackedExperts | None = None,
    ):
        super().__init__()
        self.gate_up, self.down, self.packed = gate_up, down, packed
        self.activation = activation
        # Empty: PEFT puts an adapter on the device of its layer's `weight`.
        self.register_buffer("weight", torch.empty(0, device=down.device), persistent=False)
        self.gate_up_bias = None if gate_up_bias is None else nn.Parameter(gate_up_bias, requires_grad=False)
        self.down_bias = None if down_bias is None else nn.Parameter(down_bias, requires_grad=False)

    @classmethod
    def of(cls, weights: ExpertWeights, activation: Callable[..., torch.Tensor]) -> "FusedExperts":
        """Experts whose weights are kept as they are."""
        stacks = DenseStack(weights.gate_up), DenseStack(weights.down)
        return cls(*stacks, activation, weights.gate_up_bias, weights.down_bias)

    def forward(
        self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, delta: "Delta | None" = None
    ) -> torch.Tensor:
        """Route (tokens, hidden) through each token's experts: index and weights are (tokens, active)."""
        tokens, active = index.shape
        experts = self.gate_up.shape[0]
        chosen, order = index.flatten().sort(stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        # ends[e]: one past the last row of expert e. Found by search: counting needs atomics or a host sync.
        ends = torch.searchsorted(chosen, torch.arange(experts, device=chosen.device), right=True).int()
        groups = Groups(ends, len(order))
        if delta is not None:
            delta.route(chosen, groups)
        rows = _Dispatch.apply(hidden.to(self.gate_up.dtype), order, inverse)
        both = _FrozenLinear.apply(rows, self.gate_up, groups)
        if self.gate_up_bias is not None:
            both = both + self.gate_up_bias[chosen]
        if delta is not None:
            both = delta.add(both, rows, ("gate", "up"))
        inner = self.activation(*both.chunk(2, dim=-1))
        out = _FrozenLinear.apply(inner, self.down, groups)
        if self.down_bias is not None:
            out = out + self.down_bias[chosen]
        if delta is not None:
            out = delta.add(out, inner, ("down",))
        out = _Permute.apply(out, inverse, order).view(tokens, active, -1)
        return (out * weights.unsqueeze(-1)).sum(dim=1).to(hidden.dtype)


class Delta:
    """The low-rank products of the chosen experts on one batch of sorted rows."""

    def __init__(self, lora: "FusedExpertsLora"):
        self.lora = lora
        self.groups: Groups | None = None
        self.rows: torch.Tensor | None = None

    def route(self, chosen: torch.Tensor, groups: Groups) -> None:
        """Find the rows of the chosen experts, given every row's expert and where each expert's rows end."""
        picked, ends = self.lora.kept_index, groups.ends
        if len(picked) == len(ends):
            self.groups = groups
            return
        is_picked = torch.zeros(len(ends), dtype=torch.bool, device=chosen.device)
        is_picked[picked] = True
        # The one host sync a layer: how many rows there are has to be known to allocate for them.
        self.rows = is_picked[chosen].nonzero().squeeze(1)
        counts = ends.diff(prepend=ends.new_zeros(1))
        self.groups = Groups(counts[picked].cumsum(0).int(), len(self.rows))

    def add(self, out: torch.Tensor, rows: torch.Tensor, roles: tuple[Role, ...]) -> torch.Tensor:
        """`out` plus scale * B A x for the chosen experts' rows; `out` holds the roles side by side."""
        if not any(role in self.lora.roles for role in roles):
            return out
        picked = rows if self.rows is None else rows[self.rows]
        parts = [self._product(picked, role, out.shape[1] // len(roles)) for role in roles]
        delta = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return out + delta if self.rows is None else out.index_add(0, self.rows, delta)

    def _product(self, rows: torch.Tensor, role: Role, width: int) -> torch.Tensor:
        if role not in self.lora.roles:
            return rows.new_zeros(len(rows), width)
        low, high = self.lora.factors(role, rows.dtype)
        if not len(rows):
            # No group to multiply: zero gradients all the same, as on the reference path.
            return rows @ low[0].T @ high[0].T
        assert self.groups is not None
        return self.groups.product(self.groups.product(rows, low.transpose(1, 2)), high.transpose(1, 2))


class FusedExpertsLora(nn.Module, LoraLayer):
    """PEFT's wrapper of FusedExperts: A (chosen, rank, in), B (chosen, out, rank) a projection."""

    def __init__(
        self,
        base_layer: FusedExperts,
        adapter_name: str,
        *,
        config: Any,
        target_name: str,
        selection: Selection,
        anatomy: Anatomy,
        r: int,
        lora_alpha: float,
        **_: Any,
    ):
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        found = re.search(r"layers\.(\d+)\.", target_name)
        assert found is not None
        self.chosen = tuple(expert for expert in selection.experts[int(found[1])] if expert is not None)
        self.roles = selection.projections
        self.r[adapter_name], self.lora_alpha[adapter_name] = r, lora_alpha
        self.scaling[adapter_name] = lora_alpha / (math.sqrt(r) if config.use_rslora else r)
        device, count = base_layer.down.device, len(self.chosen)
        self.kept = self.chosen
        self.kept_index: torch.Tensor
        self.register_buffer("kept_index", torch.tensor(self.chosen, device=device), persistent=False)
        low, high = nn.ParameterDict(), nn.ParameterDict()
        for role in self.roles:
            out_features, in_features = anatomy.shape(role)
            low[role] = nn.Parameter(torch.zeros(count, r, in_features, device=device))
            high[role] = nn.Parameter(torch.zeros(count, out_features, r, device=device))
        self.lora_A[adapter_name], self.lora_B[adapter_name] = low, high
        self._fixed: dict[Role, tuple[torch.Tensor, torch.Tensor]] = {}
        self._active_adapter = adapter_name
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        """PEFT's bookkeeping, which warns of unknown layer types: experts map hidden to hidden."""
        assert isinstance(module, FusedExperts)
        return module.down.shape[1], module.down.shape[1]

    @classmethod
    def of(cls, selection: Selection, anatomy: Anatomy) -> Callable[..., "FusedExpertsLora"]:
        """The constructor that PEFT calls for each adapted layer."""
        return functools.partial(cls, selection=selection, anatomy=anatomy)

    def factors(self, role: Role, dtype: torch.dtype, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """(scaling * scale * A, B) of one projection in `dtype`, rank padded with zeros to what the kernels want."""
        if role in self._fixed:
            return self._fixed[role]
        stacks: Any = self.lora_A["default"], self.lora_B["default"]
        low, high = stacks[0][role], stacks[1][role]
        missing = -low.shape[1] % RANK_MULTIPLE
        low = (low * (self.scaling["default"] * scale)).to(dtype)
        high = high.to(dtype)
        if missing:
            low = functional.pad(low, (0, 0, 0, missing))
            high = functional.pad(high, (0, missing))
        return low, high

    @torch.no_grad()
    def fix(self, kept: Sequence[int] | None = None, scale: float = 1.0) -> None:
        """Make the factors once and for all, as every forward pass would: nothing is trained from here on.

        kept: these of the chosen experts alone have their delta from here on (None: all). scale: times the delta.
        """
        base: Any = self.get_base_layer()
        self._fixed = {}
        made = {role: self.factors(role, base.down.dtype, scale) for role in self.roles}
        self.kept = self.chosen if kept is None else tuple(kept)
        self.kept_index = torch.tensor(self.kept, dtype=torch.long, device=base.down.device)
        if self.kept != self.chosen:
            places = [self.chosen.index(expert) for expert in self.kept]
            made = {role: (low[places], high[places]) for role, (low, high) in made.items()}
        self._fixed = made

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Route (tokens, hidden) as FusedExperts does, the chosen experts with their deltas."""
        delta = Delta(self) if self.kept and not self.disable_adapters else None
        return self.base_layer(hidden, index, weights, delta)


def fuse(model: nn.Module) -> Anatomy:
    """Replace a live transformers model's experts, in place. A dense model is left as it is."""
    anatomy = anatomy_of(model.config)
    family = anatomy.family
    for layer in anatomy.moe_layers:
        block: Any = model.get_submodule(anatomy.block_path(layer))
        experts = FusedExperts.of(family.read_fused(block.experts), family.activation(model.config))
        block.experts = experts.train(block.training)
    if not anatomy.dense:
        mark_rebuilt(model)
    return anatomy
