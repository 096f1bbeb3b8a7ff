"""Where a model keeps its experts, its router and its attention; everything else asks here.

A *family* says how one architecture is built (module names, config fields, how its fused expert weights are
laid out); it is one file in `pipeline/models/families/`, found by name of the config's `model_type`. An
*anatomy* is a family filled in with the numbers of one config. Importing this module does not import torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipeline.common.errors import UserError

if TYPE_CHECKING:
    import torch

    from pipeline.models.checkpoint import Checkpoint

    ExpertTensors = dict["Role", tuple[torch.Tensor, torch.Tensor | None]]


Role = Literal["gate", "up", "down"]
ROLES: tuple[Role, ...] = ("gate", "up", "down")

# A model whose experts were rebuilt is no longer the model type that transformers and PEFT know how to
# convert: the prefix keeps both from applying their fused-expert rewrites to it (DESIGN.md section 6).
REBUILT_PREFIX = "emoe_"


@dataclass(frozen=True, kw_only=True)
class ExpertWeights:
    """All experts of one layer in the one layout that this project uses, whatever the family's own layout.

    gate_up: (experts, 2 * width, hidden), the gate's rows before the up projection's; down: (experts, hidden,
    width); biases (experts, 2 * width) and (experts, hidden), or None where the family has none.
    """

    gate_up: "torch.Tensor"
    down: "torch.Tensor"
    gate_up_bias: "torch.Tensor | None" = None
    down_bias: "torch.Tensor | None" = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one architecture is built. Dense families have no `router` and no `experts_field`."""

    model_type: str
    projections: dict[Role, str]
    width_field: str
    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    router: str | None = None
    experts_field: str | None = None
    bias: bool = False
    # True where transformers has no SDPA for the family: attention then holds every score.
    holds_scores: bool = False
    # The MoE block's name in checkpoints on the hub; in transformers' module tree it is always "mlp".
    checkpoint_block: str = "mlp"
    moe_layers: Callable[[Any], tuple[int, ...]] | None = None
    # (config) -> (gate, up) -> hidden activation
    activation: Callable[[Any], "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"] | None = None
    # (source, anatomy, prefix of a layer's experts, expert) -> weight (out, in) and bias of each projection
    read_expert: "Callable[[Source, Anatomy, str, int], ExpertTensors] | None" = None
    # Where checkpoints fuse experts: projection's path -> the tensor that holds it, and a view (out, in) into
    # that.
    slot: "Callable[[str], tuple[str, Callable[[torch.Tensor], torch.Tensor]]] | None" = None
    # Where checkpoints are packed: (checkpoint, stored name) -> the unpacked tensor's name and values (None:
    # part of another), or None for a tensor that is stored as it is.
    read_stored: "Callable[[Checkpoint, str], tuple[str, torch.Tensor | None] | None] | None" = None
    # Where checkpoints hold the family inside another model, one that also sees: that one's `model_type`, and what
    # its tensors' names put before ours.
    inside: tuple[str, str] | None = None
    # transformers' own fused experts module -> the weights in this project's layout
    read_fused: Callable[[Any], ExpertWeights] | None = None


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """One model's parts, counted. `experts` and `active` are 0 for a dense model."""

    family: Family
    layers: int
    moe_layers: tuple[int, ...]
    experts: int
    active: int
    hidden: int
    width: int

    @property
    def dense(self) -> bool:
        """True when every token passes through the same feed-forward weights."""
        return self.experts == 0

    @property
    def adaptable_layers(self) -> tuple[int, ...]:
        """Layers whose feed-forward projections can carry an adapter."""
        return tuple(range(self.layers)) if self.dense else self.moe_layers

    def block_path(self, layer: int) -> str:
        """Module path of a layer's feed-forward (MoE) block."""
        return f"model.layers.{layer}.mlp"

    def experts_path(self, layer: int) -> str:
        """Module path of a MoE layer's experts."""
        return f"{self.block_path(layer)}.experts"

    def router_path(self, layer: int) -> str:
        """Module path of a MoE layer's router. Raises UserError for dense models."""
        if self.family.router is None:
            raise UserError(f"{self.family.model_type} is a dense model: it has no router.")
        return f"{self.block_path(layer)}.{self.family.router}"

    def projection_path(self, layer: int, expert: int | None, role: Role) -> str:
        """Module path of one projection of one expert (of the layer's feed-forward block where dense)."""
        parent = self.block_path(layer) if expert is None else f"{self.experts_path(layer)}.{expert}"
        return f"{parent}.{self.family.projections[role]}"

    def attention_paths(self, layer: int) -> tuple[str, ...]:
        """Module paths of a layer's attention projections."""
        return tuple(f"model.layers.{layer}.self_attn.{name}" for name in self.family.attention)

    def checkpoint_name(self, path: str) -> str:
        """A module's or parameter's path as the family's checkpoints on the hub name it."""
        return path.replace(".mlp.", f".{self.family.checkpoint_block}.")

    def rows(self, role: Role) -> slice:
        """The rows of a projection in the stack that holds it (ExpertWeights)."""
        return {"gate": slice(self.width), "up": slice(self.width, None), "down": slice(None)}[role]

    def shape(self, role: Role) -> tuple[int, int]:
        """(out, in) features of one expert's projection."""
        return (self.hidden, self.width) if role == "down" else (self.width, self.hidden)


class Source(Protocol):
    """Where a model's tensors come from, by the names that the family's checkpoints use."""

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> "torch.Tensor":
        """A whole tensor, checked against the shape that the model expects."""

    def part(self, name: str, index: int, shape: tuple[int, ...]) -> "torch.Tensor":
        """`tensor[index]` without the rest, checked against the shape that the model expects."""

    def unread(self) -> Iterator[str]:
        """Names of tensors that nothing asked for."""
