"""Plan a fine-tune's memory before anything is loaded: what fits, how, and with what predicted peak.

Arithmetic on the config alone (no torch, no weights), so that `make doctor` and `make estimate` can use it.
Weights and adapters are counted exactly; activations are an upper estimate of the largest moment of a step
(the backward pass of one layer, or the loss), with gradient checkpointing of every layer.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.common.errors import UserError
from pipeline.models.families.registry import anatomy_of
from pipeline.models.spec import AdapterSpec

GIB = 2**30
# Bytes a value in NF4: half a byte, an 8-bit scale a block of 64, an fp32 scale a nested block of 256 blocks.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
HALF, SINGLE = 2, 4
# CUDA context, cuBLAS workspaces and the allocator's fragmentation: a flat part and a share of the rest.
CONTEXT, SLACK = 0.75 * GIB, 0.07
# TRL's loss makes the logits of at most so many tokens at a time, in a buffer of so many words whatever the
# vocabulary (trl/kernels/chunked_logprob.py).
LOSS_TOKENS, LOSS_WORDS = 4096, 32768
# Where attention holds its scores (no SDPA): values, with mask, with sink, shifted, softmax and its copy for the
# product, and the gradients of two of these at a time.
SCORES = 8
# Of host memory, for frozen experts that move there; the rest is for the system and the data.
HOST_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """How to train at a constant effective batch: micro_batch x accumulation x devices.

    parts: predicted bytes on each GPU by what holds them, at the peak; host: bytes of pinned host memory that
    the experts take.
    """

    micro_batch: int
    accumulation: int
    optimizer: Literal["adamw_8bit", "paged_adamw_8bit"]
    offload: bool
    parts: dict[str, int]
    host: int

    @property
    def peak(self) -> int:
        """Predicted peak bytes on each GPU."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts.items())
        experts = f"in host memory ({self.host / GIB:.1f} GiB)" if self.offload else "on the GPU"
        return (
            f"micro-batch {self.micro_batch} x accumulation {self.accumulation}, {self.optimizer}, "
            f"experts {experts}; predicted peak {self.peak / GIB:.1f} GiB a GPU ({parts})"
        )


def plan_memory(
    config: Any,
    spec: AdapterSpec | None,
    *,
    precision: Literal["bfloat16", "nf4"],
    sequence_length: int,
    effective_batch: int,
    gpu_bytes: int,
    host_bytes: int,
    devices: int = 1,
) -> MemoryPlan:
    """The fastest plan that fits: experts on the GPU before offloaded, then the largest micro-batch.

    spec: the adapter, None where every parameter is trained. precision: of the frozen base; of what is multiplied,
    where every parameter is trained. gpu_bytes: memory of one GPU; host_bytes: memory that experts may take on
    the host, for every process together. Raises UserError, with the numbers, when even one sequence a step with
    experts offloaded does not fit, or when the effective batch does not divide among the devices.
    """
    if effective_batch % devices:
        raise UserError(f"effective batch {effective_batch} does not divide among {devices} GPUs.")
    share = effective_batch // devices
    sizes = [size for size in range(share, 0, -1) if share % size == 0]
    anatomy = anatomy_of(config)
    # What is quantised and frozen alone is ever streamed from host memory.
    offloads = (False, True) if precision == "nf4" and not anatomy.dense else (False,)
    smallest = None
    for offload in offloads:
        for micro_batch in sizes:
            for optimizer in ("adamw_8bit", "paged_adamw_8bit"):
                plan = _plan(config, spec, precision, sequence_length, micro_batch, share, optimizer, offload)
                smallest = plan if smallest is None or plan.peak < smallest.peak else smallest
                if plan.peak <= gpu_bytes and plan.host * devices <= host_bytes:
                    return plan
    assert smallest is not None
    host = f" and {smallest.host * devices / GIB:.1f} GiB of host memory (there are {host_bytes / GIB:.1f})"
    raise UserError(
        f"{anatomy.family.model_type} does not fit: its smallest plan needs {smallest.peak / GIB:.1f} GiB "
        f"on each GPU (there are {gpu_bytes / GIB:.1f}){host if smallest.offload else ''}: {smallest}. "
        "Fewer experts, a lower rank, an adapter instead of every parameter, or a shorter sequence limit need less."
    )


def _plan(
    config: Any,
    spec: AdapterSpec | None,
    precision: Literal["bfloat16", "nf4"],
    sequence_length: int,
    micro_batch: int,
    share: int,
    optimizer: Any,
    offload: bool,
) -> MemoryPlan:
    anatomy = anatomy_of(config)
    weights = base_bytes(config, precision)
    experts = weights.pop("experts")
    layer = experts / max(len(anatomy.moe_layers), 1)
    trained = sum(base_values(config).values()) if spec is None else adapter_values(config, spec)
    dequantised = 2 * anatomy.width * anatomy.hidden * anatomy.experts if precision == "nf4" else 0
    parts = {
        # Where they are trained themselves: autocast's copies.
        "weights": sum(weights.values()),
        "experts": 2 * layer if offload else experts,
        "dequantised layer": HALF * dequantised,
        "trained and gradients": 2 * SINGLE * trained,
        # Two 8-bit moments; paged ones can leave the GPU whenever they are in the way.
        "optimizer": 2 * trained if optimizer == "adamw_8bit" else 0,
        "activations": activation_bytes(config, spec, micro_batch, sequence_length),
    }
    parts["context and slack"] = CONTEXT + SLACK * sum(parts.values())
    return MemoryPlan(
        micro_batch=micro_batch,
        accumulation=share // micro_batch,
        optimizer=optimizer,
        offload=offload,
        parts={name: round(size) for name, size in parts.items()},
        # A layer is one allocation, which torch rounds up to a power of two where memory is pinned.
        host=len(anatomy.moe_layers) * 2 ** math.ceil(math.log2(layer)) if offload else 0,
    )


def _attention_shapes(config: Any) -> list[tuple[int, int]]:
    """(out, in) of each attention projection."""
    return list(anatomy_of(config).family.attention_shapes(config).values())


def base_bytes(config: Any, precision: Literal["bfloat16", "nf4"] = "nf4") -> dict[str, float]:
    """Bytes of a base: experts and other linear layers in `precision`; embeddings, head, routers in bf16."""
    size = {"nf4": NF4, "bfloat16": HALF}[precision]
    values = base_values(config)
    return {name: count * (size if name in ("experts", "attention") else HALF) for name, count in values.items()}


def base_values(config: Any) -> dict[str, int]:
    """How many values a base has; its norms and biases, a few hundred kilobytes, are left out."""
    anatomy = anatomy_of(config)
    hidden, layers = anatomy.hidden, anatomy.layers
    linear = layers * sum(rows * columns for rows, columns in _attention_shapes(config))
    dense_layers = layers - len(anatomy.moe_layers)
    dense_width = anatomy.width if anatomy.dense else config.intermediate_size
    linear += dense_layers * 3 * dense_width * hidden
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
        values += len(layers) * sum(spec.rank * (rows + columns) for rows, columns in _attention_shapes(config))
    if spec.router != "frozen":
        bias = 1 if anatomy.family.bias else 0
        values += len(set(layers) & set(anatomy.moe_layers)) * anatomy.experts * (anatomy.hidden + bias)
    return values


def activation_bytes(config: Any, spec: AdapterSpec | None, sequences: int, length: int) -> float:
    """Bytes that `sequences` sequences of `length` tokens hold at the peak of a step, gradient checkpointing on.

    Every layer's input (bf16), plus the larger of the loss and one layer's backward pass. The loss: a tile of
    logits, the hidden states in bf16 three times (as they are, chosen, gradient), their gradient in fp32. A
    layer: attention's and the experts' intermediate results and as much again for their gradients, the routed
    outputs in fp32; the scores where attention holds them.
    """
    anatomy = anatomy_of(config)
    tokens = sequences * length
    inputs = HALF * anatomy.layers * anatomy.hidden * tokens
    loss = HALF * min(tokens, LOSS_TOKENS) * LOSS_WORDS
    loss += (3 * HALF + SINGLE) * anatomy.hidden * tokens
    scores = SCORES * HALF * config.num_attention_heads * sequences * length**2 if anatomy.family.holds_scores else 0
    attention = HALF * (4 * anatomy.hidden + sum(rows for rows, _ in _attention_shapes(config))) * tokens
    rows = tokens * max(anatomy.active, 1)
    expert = rows * (HALF * (2 * anatomy.hidden + 4 * anatomy.width) + SINGLE * anatomy.hidden)
    low_rank = rows * HALF * (3 * spec.rank + anatomy.hidden + 2 * anatomy.width) if spec else 0
    return inputs + max(loss, 2 * (attention + expert + low_rank) + scores)
