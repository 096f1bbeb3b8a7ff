"""How large a model is, counted on its config alone: what the memory plans of training and sampling have in common.

No torch, no weights: `make doctor` and `make estimate` use it.
"""

from typing import Any, Literal

from pipeline.models.families.registry import anatomy_of
from pipeline.models.spec import AdapterSpec

GIB = 2**30
# Bytes a value in NF4: half a byte, an 8-bit scale a block of 64, an fp32 scale a nested block of 256 blocks.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
HALF, SINGLE = 2, 4
# CUDA context, cuBLAS workspaces and the allocator's fragmentation: a flat part and a share of the rest.
CONTEXT, SLACK = 0.75 * GIB, 0.07
# Of host memory, for frozen experts that move there; the rest is for the system and the data.
HOST_SHARE = 0.8


def attention_shapes(config: Any) -> tuple[tuple[int, int], ...]:
    """(out, in) of each attention projection of a layer."""
    return tuple(anatomy_of(config).family.attention_shapes(config).values())


def base_bytes(config: Any, precision: Literal["bfloat16", "nf4"] = "nf4") -> dict[str, float]:
    """Bytes of a base: experts and other linear layers in `precision`; embeddings, head, routers in bf16."""
    size = {"nf4": NF4, "bfloat16": HALF}[precision]
    values = base_values(config)
    return {name: count * (size if name in ("experts", "attention") else HALF) for name, count in values.items()}


def base_values(config: Any) -> dict[str, int]:
    """How many values a base has; its norms and biases, a few hundred kilobytes, are left out."""
    anatomy = anatomy_of(config)
    hidden, layers = anatomy.hidden, anatomy.layers
    linear = layers * sum(rows * columns for rows, columns in attention_shapes(config))
    dense_layers = layers - len(anatomy.moe_layers)
    dense_width = anatomy.width if anatomy.dense else config.intermediate_size
    linear += dense_layers * 3 * dense_width * hidden
    linear += len(anatomy.moe_layers) * 3 * anatomy.family.shared_width(config) * hidden
    embeddings = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    routers = len(anatomy.moe_layers) * anatomy.experts * hidden
    experts = len(anatomy.moe_layers) * anatomy.experts * 3 * anatomy.width * hidden
    return {
        "experts": experts,
        "attention": linear,
        "embeddings": embeddings,
        "routers": routers,
    }


def adapter_values(config: Any, spec: AdapterSpec) -> int:
    """How many values a spec trains on a config, before anything is loaded."""
    anatomy = anatomy_of(config)
    layers = anatomy.adaptable_layers if spec.layers == "all" else spec.layers
    if anatomy.dense:
        experts = 1
    elif spec.experts == "all":
        experts = anatomy.experts
    else:
        experts = spec.routed or len(spec.experts)
    values = len(layers) * experts * sum(spec.rank * sum(anatomy.shape(role)) for role in spec.projections)
    if spec.attention:
        values += len(layers) * sum(spec.rank * (rows + columns) for rows, columns in attention_shapes(config))
    if spec.router != "frozen":
        bias = 1 if anatomy.family.bias else 0
        values += len(set(layers) & set(anatomy.moe_layers)) * anatomy.experts * (anatomy.hidden + bias)
    return values


def active_values(config: Any) -> int:
    """How many values of a base a token passes: all but the experts that it is not routed to."""
    values, anatomy = base_values(config), anatomy_of(config)
    share = 1.0 if anatomy.dense else anatomy.active / anatomy.experts
    return round(values["experts"] * share) + sum(count for name, count in values.items() if name != "experts")


def matched_rank(config: Any, spec: AdapterSpec, share: float) -> int:
    """The rank, 1 or more, at which `spec` trains as near to `share` of the base's active values as there is."""
    one = adapter_values(config, spec.model_copy(update={"rank": 1}))
    return max(1, round(share * active_values(config) / one))
