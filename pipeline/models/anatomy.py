"""Where a model keeps its experts, its router and its attention; everything else asks here.

A *family* says how one architecture is built: module names, config fields, how its checkpoints and its fused expert
weights are laid out. It is one class in `pipeline/models/families/`, listed in `families/registry.py`. An *anatomy* is
a family filled in with the numbers of one config. Importing this module does not import torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pipeline.common.errors import UserError

if TYPE_CHECKING:
    import torch

    ExpertTensors = dict["Role", tuple[torch.Tensor, torch.Tensor | None]]


Role = Literal["gate", "up", "down"]
ROLES: tuple[Role, ...] = ("gate", "up", "down")

# transformers and PEFT rewrite the fused experts of the model types that they know. A model whose experts were rebuilt
# here has none to rewrite: the prefix makes its type one that they do not know.
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


class Source(Protocol):
    """Where a model's tensors come from, by the names that the family's checkpoints use."""

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> "torch.Tensor":
        """A whole tensor, checked against the shape that the model expects, if given."""

    def part(self, name: str, index: int, shape: tuple[int, ...]) -> "torch.Tensor":
        """`tensor[index]` without the rest, checked against the shape that the model expects."""

    def skip(self, prefix: str) -> None:
        """Count every tensor whose name begins with `prefix` as read: its values are had from elsewhere."""

    def unread(self) -> Iterator[str]:
        """Names of tensors that nothing asked for."""


class Family:
    """How one architecture is built; a subclass overrides what differs from Llama, or from Qwen's MoE.

    A dense family has no `router` and no `experts_field`, and the methods on experts are never called.
    """

    model_type: ClassVar[str]
    projections: ClassVar[dict[Role, str]] = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    # The config's field with the inner width of an expert (of the feed-forward block, where dense).
    width_field: ClassVar[str] = "intermediate_size"
    experts_field: ClassVar[str | None] = None
    # The config's field with the number of experts that a token is routed to; of a router whose number cannot be set,
    # what it is.
    active_field: ClassVar[str] = "num_experts_per_tok"
    fixed_router: ClassVar[str | None] = None
    router: ClassVar[str | None] = None
    # The place of the logits, (tokens, experts), in what the router returns.
    router_logits: ClassVar[int] = 0
    # Whether an expert's projections (and the router) have biases.
    bias: ClassVar[bool] = False
    # True where transformers has no SDPA for the family: attention then holds every score.
    holds_scores: ClassVar[bool] = False
    # The feed-forward (MoE) block's name in transformers' module tree, and in checkpoints on the hub.
    block: ClassVar[str] = "mlp"
    checkpoint_block: ClassVar[str] = "mlp"
    # Linear layers, by the last part of their path, that are never quantised: gates decide by small margins.
    unquantised: ClassVar[frozenset[str]] = frozenset()
    # The module, within the MoE block, of the experts that every token passes through.
    shared: ClassVar[str | None] = None
    # Where checkpoints hold the family as the language model of a multimodal one: that one's `model_type`, and what its
    # tensors' names put before ours.
    inside: ClassVar[tuple[str, str] | None] = None

    def moe_layers(self, config: Any) -> tuple[int, ...]:
        """Layers whose feed-forward block is a mixture of experts."""
        return () if self.experts_field is None else tuple(range(config.num_hidden_layers))

    def attention_shapes(self, config: Any) -> dict[str, tuple[int, int]]:
        """(out, in) of each attention projection, by its module's name."""
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        queries, keys, hidden = config.num_attention_heads * head, config.num_key_value_heads * head, config.hidden_size
        return {
            "q_proj": (queries, hidden),
            "k_proj": (keys, hidden),
            "v_proj": (keys, hidden),
            "o_proj": (hidden, queries),
        }

    def shared_width(self, config: Any) -> int:
        """Inner width of the experts that every token of a MoE layer passes through; 0 where there are none."""
        return 0

    def stored_name(self, path: str) -> str:
        """A module's or parameter's path as checkpoints on the hub name it."""
        return path.replace(f".{self.block}.", f".{self.checkpoint_block}.")

    def activation(self, config: Any) -> "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]":
        """(gate, up) -> act(gate) * up, with the config's `hidden_act` (SwiGLU for silu; Shazeer 2020)."""
        from transformers.activations import ACT2FN

        act = ACT2FN[config.hidden_act]
        return lambda gate, up: act(gate) * up

    def read_expert(self, source: Source, anatomy: "Anatomy", prefix: str, expert: int) -> "ExpertTensors":
        """Weight (out, in) and bias of each projection of one expert, whose layer's experts are stored under `prefix`.

        Here: one matrix a projection and expert, no bias.
        """
        return {
            role: (source.tensor(f"{prefix}.{expert}.{name}.weight", anatomy.shape(role)), None)
            for role, name in self.projections.items()
        }

    def read_fused(self, experts: Any) -> ExpertWeights:
        """The weights of transformers' own fused experts module in this project's layout.

        Here: (experts, out, in), gate rows before up rows, no bias.
        """
        return ExpertWeights(gate_up=experts.gate_up_proj.data, down=experts.down_proj.data)

    def slot(self, path: str) -> "tuple[str, Callable[[torch.Tensor], torch.Tensor]]":
        """The stored tensor that holds the projection stored under `path`, and the view (out, in) into it."""
        return f"{path}.weight", lambda whole: whole

    def read_stored(self, source: Source, name: str) -> "tuple[str, torch.Tensor | None] | None":
        """Where checkpoints are packed: the unpacked tensor's name and values (None: part of another tensor).

        None for a tensor that is stored as it is, which all are here.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """One model's parts, counted. `experts` and `active` are 0 for a dense model; `attention` are its projections."""

    family: Family
    layers: int
    moe_layers: tuple[int, ...]
    experts: int
    active: int
    hidden: int
    width: int
    attention: tuple[str, ...]

    @property
    def dense(self) -> bool:
        """True when every token passes through the same feed-forward weights."""
        return self.experts == 0

    @property
    def adaptable_layers(self) -> tuple[int, ...]:
        """Layers whose feed-forward projections can carry an adapter."""
        return tuple(range(self.layers)) if self.dense else self.moe_layers

    def layer_path(self, layer: int) -> str:
        """Module path of a whole layer."""
        return f"model.layers.{layer}"

    def block_path(self, layer: int) -> str:
        """Module path of a layer's feed-forward (MoE) block."""
        return f"{self.layer_path(layer)}.{self.family.block}"

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

    def shared_paths(self, layer: int) -> tuple[str, ...]:
        """Module paths of the projections of a MoE layer's shared experts (stored as one), if any."""
        if self.family.shared is None:
            return ()
        return tuple(f"{self.block_path(layer)}.{self.family.shared}.{it}" for it in self.family.projections.values())

    def attention_paths(self, layer: int) -> tuple[str, ...]:
        """Module paths of a layer's attention projections."""
        return tuple(f"model.layers.{layer}.self_attn.{name}" for name in self.attention)

    def checkpoint_name(self, path: str) -> str:
        """A module's or parameter's path as the family's checkpoints on the hub name it."""
        return self.family.stored_name(path)

    def rows(self, role: Role) -> slice:
        """The rows of a projection in the stack that holds it (ExpertWeights)."""
        return {"gate": slice(self.width), "up": slice(self.width, None), "down": slice(None)}[role]

    def shape(self, role: Role) -> tuple[int, int]:
        """(out, in) features of one expert's projection."""
        return (self.hidden, self.width) if role == "down" else (self.width, self.hidden)
