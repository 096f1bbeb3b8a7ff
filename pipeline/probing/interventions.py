"""What is changed in a fine-tuned model while it answers: parts of its adapter switched off, scaled, a direction moved.

A *unit* is the adapter's part in one layer: one expert, the attention, or a dense model's feed-forward block.
Interventions are exact. A unit that is off adds no delta at all (none is multiplied by 0), so that with every unit off
the model computes what its base computes, bit for bit; and an intervention that changes nothing leaves every tensor and
every kernel of the fine-tuned model as it is. Nothing is loaded, merged or copied: one loaded model serves them all.
"""

import contextlib
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft.tuners.lora import LoraLayer

from pipeline.common.errors import UserError
from pipeline.models.anatomy import Anatomy
from pipeline.models.experts.fused import FusedExpertsLora
from pipeline.models.families.registry import anatomy_of

Part = int | Literal["attention", "block"]
ATTENTION: Part = "attention"
BLOCK: Part = "block"
Unit = tuple[int, Part]


@dataclass(frozen=True, kw_only=True, eq=False)
class Shift:
    """A change of the residual stream behind one layer, at every token.

    add: `vector` is added. project out: the stream's component along `vector` is taken away. vector: (hidden,), fp32.
    """

    layer: int
    how: Literal["add", "project out"]
    vector: torch.Tensor

    def __call__(self, stream: torch.Tensor) -> torch.Tensor:
        """The changed stream, (..., hidden), in its own type; computed in fp32."""
        vector = self.vector.to(stream.device)
        wide = stream.float()
        if self.how == "add":
            return (wide + vector).to(stream.dtype)
        unit = vector / vector.norm()
        return (wide - (wide @ unit).unsqueeze(-1) * unit).to(stream.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Intervention:
    """One change, by the name that its answers carry; `kind` and `what` say what it is for (docs/containment.md)."""

    name: str
    kind: str
    what: str = ""
    strength: float | None = None
    off: frozenset[Unit] = frozenset()
    scale: float = 1.0
    shifts: tuple[Shift, ...] = ()

    @property
    def identity(self) -> list[Any]:
        """Everything of it that answers depend on."""
        digests = [hashlib.sha256(it.vector.numpy().tobytes()).hexdigest() for it in self.shifts]
        off = sorted([layer, str(part)] for layer, part in self.off)
        return [off, self.scale, [[it.layer, it.how, it_is] for it, it_is in zip(self.shifts, digests, strict=True)]]

    @property
    def row(self) -> dict[str, Any]:
        """What it is, as a row beside its answers; off: how many of the adapter's units are."""
        return {
            "name": self.name,
            "kind": self.kind,
            "what": self.what,
            "strength": self.strength,
            "scale": self.scale,
            "off": len(self.off),
        }


def units_of(model: Any) -> tuple[Unit, ...]:
    """Every unit of a loaded model's adapter, by layer: attention, then experts in order."""
    return tuple(sorted({unit for _, units in _adapted(model) for unit in units}, key=lambda it: (it[0], str(it[1]))))


@contextlib.contextmanager
def applied(model: Any, change: Intervention) -> Iterator[Any]:
    """The model as the intervention has it, within the block; as it was behind it, whatever happens there."""
    touched = [(module, units) for module, units in _adapted(model) if change.scale != 1 or change.off & set(units)]
    anatomy, inner = anatomy_of(model.config), model.get_base_model()
    handles: list[Any] = []
    try:
        for module, units in touched:
            _set(module, [part for layer, part in units if (layer, part) not in change.off], change.scale)
        for shift in change.shifts:
            handles.append(inner.get_submodule(anatomy.layer_path(shift.layer)).register_forward_hook(_hook(shift)))
        yield model
    finally:
        for handle in handles:
            handle.remove()
        for module, units in touched:
            _set(module, [part for _, part in units], 1.0)


def _adapted(model: Any) -> Iterator[tuple[Any, tuple[Unit, ...]]]:
    """Each module that holds low-rank pairs, with the units that it holds them of."""
    anatomy = anatomy_of(model.config)
    paths = {f"{anatomy.layer_path(layer)}.": layer for layer in range(anatomy.layers)}
    for path, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        layer = next(layer for prefix, layer in paths.items() if prefix in f"{path}.")
        yield module, tuple((layer, part) for part in _parts(path, module, anatomy))


def _parts(path: str, module: Any, anatomy: Anatomy) -> tuple[Part, ...]:
    if isinstance(module, FusedExpertsLora):
        return module.chosen
    if ".self_attn." in path:
        return (ATTENTION,)
    if anatomy.dense:
        return (BLOCK,)
    raise UserError(f"{path} of its adapter is neither attention nor a fused expert, which alone can be switched off.")


def _set(module: Any, kept: Collection[Part], scale: float) -> None:
    """Have a module add the deltas of `kept` alone, times `scale`."""
    if isinstance(module, FusedExpertsLora):
        module.fix([part for part in kept if isinstance(part, int)], scale)
        return
    # PEFT's own way to do without a delta; `enable_adapters` would make its parameters trainable again.
    module._disable_adapters = not kept
    module.set_scale("default", scale)


def _hook(shift: Shift) -> Any:
    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        # Decoder layers return the stream, or a tuple that begins with it.
        return (shift(output[0]), *output[1:]) if isinstance(output, tuple) else shift(output)

    return hook
