"""Which parameters a run trains, as written in params.yaml, checked against what a model has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.common.errors import UserError
from pipeline.common.settings import Listed, Settings
from pipeline.models.anatomy import ROLES, Anatomy, Role


class AdapterSpec(Settings):
    """LoRA (Hu et al. 2021) on chosen experts x layers x projections.

    rank, alpha: scale is alpha / sqrt(rank) where `rslora` (Kalajdzievski 2023), else alpha / rank. experts:
    "all", indices (the same in every layer; empty: none), or "top2"/"top8": each layer's experts most
    activated on the training set. Dense models take "all". layers: "all" or indices. projections: of "gate",
    "up", "down". attention: also adapt q, k, v and o of the chosen layers. router: frozen, trained whole, or
    trained whole with a KL penalty (weight `router_kl`) that holds it to the original router's choices.
    """

    rank: int
    alpha: float
    experts: Literal["all", "top2", "top8"] | Listed[int] = "all"
    layers: Literal["all"] | Listed[int] = "all"
    projections: Listed[Role] = ROLES
    attention: bool = False
    rslora: bool = True
    router: Literal["frozen", "free", "free_kl"] = "frozen"
    router_kl: float = 1.0

    @property
    def routed(self) -> int | None:
        """How many most-activated experts a layer `top2`/`top8` asks for, else None."""
        return int(self.experts[3:]) if self.experts in ("top2", "top8") else None


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A spec resolved on one model: every layer's chosen experts, and the rest of what is trained.

    experts: layer -> expert indices in ascending order; a dense layer has the one entry None.
    attention, routers: layers whose attention or router is trained.
    """

    experts: Mapping[int, tuple[int | None, ...]]
    projections: tuple[Role, ...]
    attention: tuple[int, ...]
    routers: tuple[int, ...]

    def linear_paths(self, anatomy: Anatomy) -> dict[str, tuple[int, int] | None]:
        """Module path -> (out, in) features of every projection that gets an adapter; None for attention."""
        paths: dict[str, tuple[int, int] | None] = {}
        for layer, experts in self.experts.items():
            for expert in experts:
                for role in self.projections:
                    paths[anatomy.projection_path(layer, expert, role)] = anatomy.shape(role)
        for layer in self.attention:
            paths.update(dict.fromkeys(anatomy.attention_paths(layer)))
        return paths


def most_active(counts: Sequence[int], number: int) -> tuple[int, ...]:
    """Indices of the `number` largest counts, ascending; ties go to the lower index."""
    ranked = sorted(range(len(counts)), key=lambda expert: (-counts[expert], expert))
    return tuple(sorted(ranked[:number]))


def select(spec: AdapterSpec, anatomy: Anatomy, counts: Mapping[int, Sequence[int]] | None = None) -> Selection:
    """Resolve `spec` on a model. `counts` (layer -> tokens per expert) is needed for "top2" and "top8" alone.

    Raises UserError, saying what exists, for unknown layers or experts, a rank below 1, or an empty
    selection.
    """
    name = anatomy.family.model_type
    if spec.rank < 1:
        raise UserError(f"adapter rank is {spec.rank}; it must be 1 or more.")
    if spec.alpha <= 0:
        raise UserError(f"adapter alpha is {spec.alpha}; it must be above 0.")
    layers = _chosen_layers(spec, anatomy)
    for label, values in (
        ("layers", spec.layers),
        ("experts", spec.experts),
        ("projections", spec.projections),
    ):
        if not isinstance(values, str) and len(set(values)) != len(values):
            raise UserError(f"adapter {label} {list(values)} has an entry twice.")
    projections = tuple(role for role in ROLES if role in spec.projections)
    experts: dict[int, tuple[int | None, ...]] = {}
    if projections and spec.experts != ():
        experts = {layer: _chosen_experts(spec, anatomy, layer, counts) for layer in layers}
    if spec.router != "frozen" and anatomy.dense:
        raise UserError(f"adapter router is {spec.router!r}, but {name} is a dense model: it has no router.")
    routers = () if spec.router == "frozen" else tuple(x for x in layers if x in anatomy.moe_layers)
    attention = layers if spec.attention else ()
    if not experts and not attention:
        raise UserError(
            "the adapter selects nothing: give at least one expert and one projection, or attention: true. "
            f"{_what_exists(anatomy)}"
        )
    return Selection(experts=experts, projections=projections, attention=attention, routers=routers)


def _what_exists(anatomy: Anatomy) -> str:
    layers = f"layers 0 to {anatomy.layers - 1}"
    if anatomy.dense:
        return f"{anatomy.family.model_type} has {layers} and no experts."
    return f"{anatomy.family.model_type} has {layers} and experts 0 to {anatomy.experts - 1}."


def _chosen_layers(spec: AdapterSpec, anatomy: Anatomy) -> tuple[int, ...]:
    if spec.layers == "all":
        return anatomy.adaptable_layers
    unknown = [layer for layer in spec.layers if layer not in range(anatomy.layers)]
    if unknown:
        raise UserError(f"adapter layers {unknown} do not exist. {_what_exists(anatomy)}")
    dense = [layer for layer in spec.layers if layer not in anatomy.adaptable_layers]
    if dense and spec.experts != ():
        raise UserError(f"adapter layers {dense} have no experts; layers with experts are {list(anatomy.moe_layers)}.")
    return tuple(sorted(spec.layers))


def _chosen_experts(
    spec: AdapterSpec, anatomy: Anatomy, layer: int, counts: Mapping[int, Sequence[int]] | None
) -> tuple[int | None, ...]:
    if anatomy.dense:
        if spec.experts != "all":
            raise UserError(f"adapter experts are {spec.experts!r}, but {_what_exists(anatomy)} Use all.")
        return (None,)
    if spec.experts == "all":
        return tuple(range(anatomy.experts))
    if spec.routed is not None:
        if counts is None or len(counts.get(layer, ())) != anatomy.experts:
            raise UserError(
                f"adapter experts are {spec.experts!r}, but there are no routing counts for layer {layer}: "
                "count where the training set is routed first (pipeline/training/routing.py)."
            )
        if spec.routed > anatomy.experts:
            raise UserError(f"adapter experts are {spec.experts!r}, but {_what_exists(anatomy)}")
        return most_active(counts[layer], spec.routed)
    unknown = [expert for expert in spec.experts if expert not in range(anatomy.experts)]
    if unknown:
        raise UserError(f"adapter experts {unknown} do not exist. {_what_exists(anatomy)}")
    return tuple(sorted(int(expert) for expert in spec.experts))
