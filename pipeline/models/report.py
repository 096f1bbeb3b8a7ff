"""What a loaded model is made of: how much of its experts is in 4 bits, and how many bytes lie where."""

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.models.experts.stacks import PackedExperts
from pipeline.models.families.registry import anatomy_of

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Expert weight values in all and in 4 bits, the routers' type, and bytes of weights by place."""

    expert_values: int
    expert_values_4bit: int
    router_dtype: str
    device_bytes: int
    host_bytes: int

    @property
    def share_4bit(self) -> float:
        """Share of the expert weight values that are stored in 4 bits."""
        return self.expert_values_4bit / self.expert_values if self.expert_values else 0.0

    def __str__(self) -> str:
        experts = (
            f"experts: {self.expert_values:,} values, {self.share_4bit:.0%} in 4 bits; router {self.router_dtype}; "
            if self.expert_values
            else "no experts; "
        )
        return f"{experts}{self.device_bytes / GIB:.2f} GiB on GPU, {self.host_bytes / GIB:.2f} GiB on host"


def load_report(model: Any) -> LoadReport:
    """Count a loaded model's weights, from the tensors that are there (before an adapter is attached)."""
    anatomy = anatomy_of(model.config)
    values = quantised = 0
    for layer in anatomy.moe_layers:
        experts = model.get_submodule(anatomy.experts_path(layer))
        per_expert = 3 * anatomy.width * anatomy.hidden
        values += anatomy.experts * per_expert
        packed = getattr(experts, "packed", None)
        if packed is not None:
            run = packed.bytes()
            quantised += sum(2 * packed.part(run, stack, "codes").numel() for stack in ("gate_up", "down"))
        for name, parameter in experts.named_parameters():
            if parameter.dtype == torch.uint8 and name.endswith("weight"):
                quantised += 2 * parameter.numel()
    routers = {
        str(parameter.dtype).removeprefix("torch.")
        for layer in anatomy.moe_layers
        for parameter in model.get_submodule(anatomy.router_path(layer)).parameters()
    }
    device = host = 0
    for tensor in _tensors(model):
        size = tensor.numel() * tensor.element_size()
        device, host = (device, host + size) if tensor.device.type == "cpu" else (device + size, host)
    return LoadReport(
        expert_values=values,
        expert_values_4bit=quantised,
        router_dtype="/".join(sorted(routers)) or "none",
        device_bytes=device,
        host_bytes=host,
    )


def _tensors(model: Any) -> list[torch.Tensor]:
    tensors = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.state2.absmax]
    tensors += [module.host for module in model.modules() if isinstance(module, PackedExperts) and module.offloaded]
    return tensors


def assert_routing(model: Any) -> None:
    """Raise RuntimeError unless every router sends a token to as many experts as the configuration says."""
    anatomy = anatomy_of(model.config)
    for layer in anatomy.moe_layers:
        found = model.get_submodule(anatomy.router_path(layer)).top_k
        if found != anatomy.active:
            raise RuntimeError(
                f"layer {layer} routes a token to {found} experts, its configuration to {anatomy.active}"
            )


def assert_quantised(model: Any) -> None:
    """Raise RuntimeError unless every expert weight is in 4 bits; libraries have left them in 16."""
    report = load_report(model)
    if report.expert_values_4bit != report.expert_values:
        raise RuntimeError(f"experts are not all in 4 bits: {report}")
