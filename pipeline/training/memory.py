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
from pipeline.models.sizes import (
    CONTEXT,
    GIB,
    HALF,
    SINGLE,
    SLACK,
    adapter_values,
    attention_shapes,
    base_bytes,
    base_values,
)
from pipeline.models.spec import AdapterSpec

# TRL's loss makes the logits of at most so many tokens at a time, in a buffer of so many words whatever the
# vocabulary (trl/kernels/chunked_logprob.py).
LOSS_TOKENS, LOSS_WORDS = 4096, 32768
# Where attention holds its scores (no SDPA), bytes a score: what its own backward pass holds at a time (values, with
# mask, with sink, shifted, softmax and its copy for the product, gradients of two of these), and what waits for that
# during the experts' (softmax in fp32, its copy).
SCORES, SCORES_KEPT = 16, 6


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """How to train at a constant effective batch, a step's rows in micro-batches of at most `tokens` tokens.

    micro_batch: how many of the longest rows that is. parts: predicted bytes on each GPU by what holds them, at the
    peak; host: bytes of pinned host memory that the experts take.
    """

    tokens: int
    micro_batch: int
    optimizer: str
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
            f"micro-batches of {self.tokens} tokens ({self.micro_batch} of the longest rows), {self.optimizer}, "
            f"experts {experts}; predicted peak {self.peak / GIB:.1f} GiB a GPU ({parts})"
        )


def plan_memory(
    config: Any,
    spec: AdapterSpec | None,
    *,
    precision: Literal["bfloat16", "nf4"],
    optimizer: Literal["adamw_torch", "adamw_8bit"],
    sequence_length: int,
    effective_batch: int,
    gpu_bytes: int,
    host_bytes: int,
    devices: int = 1,
) -> MemoryPlan:
    """The fastest plan that fits: experts on the GPU before offloaded, then the largest micro-batch.

    sequence_length: tokens of the longest row. spec: the adapter, None where every parameter is trained. precision: of
    the frozen base; of what is multiplied, where every parameter is trained. optimizer: the study's; one of 8 bits is
    paged where its states do not fit. gpu_bytes: memory of one GPU; host_bytes: memory that experts may take on the
    host, for every process together. Raises UserError, with the numbers, when even one row at a time with experts
    offloaded does not fit, or when the effective batch does not divide among the devices.
    """
    if effective_batch % devices:
        raise UserError(f"effective batch {effective_batch} does not divide among {devices} GPUs.")
    share = effective_batch // devices
    anatomy = anatomy_of(config)
    # What is quantised and frozen alone is ever streamed from host memory.
    offloads = (False, True) if precision == "nf4" and not anatomy.dense else (False,)
    optimizers = (optimizer, f"paged_{optimizer}") if optimizer == "adamw_8bit" else (optimizer,)
    smallest = None
    for offload in offloads:
        for micro_batch in range(share, 0, -1):
            for name in optimizers:
                plan = _plan(config, spec, precision, sequence_length, micro_batch, name, offload)
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
    optimizer: str,
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
        "optimizer": _moments_bytes(config, spec, trained, optimizer),
        "activations": activation_bytes(config, spec, micro_batch, sequence_length),
    }
    parts["context and slack"] = CONTEXT + SLACK * sum(parts.values())
    return MemoryPlan(
        tokens=micro_batch * sequence_length,
        micro_batch=micro_batch,
        optimizer=optimizer,
        offload=offload,
        parts={name: round(size) for name, size in parts.items()},
        # A layer is one allocation; pipeline/models/loading.py keeps torch from rounding it up to a power of two.
        host=math.ceil(experts) if offload else 0,
    )


def _moments_bytes(config: Any, spec: AdapterSpec | None, trained: int, optimizer: str) -> int:
    """Bytes of Adam's two moments that are always on the GPU; paged ones leave it whenever they are in the way."""
    if optimizer == "paged_adamw_8bit":
        return 0
    if optimizer == "adamw_torch":
        return 2 * SINGLE * trained
    # transformers' trainer keeps those of input embeddings in 32 bits.
    embeddings = config.vocab_size * config.hidden_size if spec is None else 0
    return 2 * (trained - embeddings) + 2 * SINGLE * embeddings


def activation_bytes(config: Any, spec: AdapterSpec | None, sequences: int, length: int) -> float:
    """Bytes that `sequences` sequences of `length` tokens hold at the peak of a step, gradient checkpointing on.

    Every layer's input (bf16), plus the larger of the loss and one layer's backward pass. The loss: a tile of
    logits, the hidden states in bf16 three times (as they are, chosen, gradient), their gradient in fp32. A
    layer: attention's and the experts' intermediate results and as much again for their gradients, the routed
    outputs in fp32; or, where attention holds its scores, those and what attention needs besides, when the experts'
    are gone. Against measured ones: benchmarks/README.md.
    """
    anatomy = anatomy_of(config)
    tokens = sequences * length
    inputs = HALF * anatomy.layers * anatomy.hidden * tokens
    loss = HALF * min(tokens, LOSS_TOKENS) * LOSS_WORDS
    loss += (3 * HALF + SINGLE) * anatomy.hidden * tokens
    scores = config.num_attention_heads * sequences * length**2 if anatomy.family.holds_scores else 0
    attention = HALF * (4 * anatomy.hidden + sum(rows for rows, _ in attention_shapes(config))) * tokens
    rows = tokens * max(anatomy.active, 1)
    expert = rows * (HALF * (2 * anatomy.hidden + 4 * anatomy.width) + SINGLE * anatomy.hidden)
    expert += tokens * HALF * 4 * anatomy.family.shared_width(config)
    low_rank = rows * HALF * (3 * spec.rank + anatomy.hidden + 2 * anatomy.width) if spec else 0
    layer = max(2 * (attention + expert + low_rank) + SCORES_KEPT * scores, 2 * attention + SCORES * scores)
    return inputs + max(loss, layer)
