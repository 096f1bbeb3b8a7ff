"""Plan a run's sampling before anything is loaded: how many answers at once, what is kept where, at what peak.

Arithmetic on the config alone, as pipeline/training/memory.py plans training: no torch, no weights, no GPU, so that
`make doctor`, `make estimate` and `make reproduce` can ask before a GPU-hour is spent. Weights, adapter and KV cache
are counted exactly; what a forward pass holds besides is an upper estimate.

Where weights do not fit, whole layers of them are kept in host memory and copied to the GPU a layer ahead of their
use, at every step: experts in 4 bits, or the linear layers of a dense model in 16. As few as possible are: a step takes
as long as its copies, and each further answer in the batch makes a step worth more.
"""

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.common.errors import UserError
from pipeline.models.cards import SLOW, Rates
from pipeline.models.families.registry import anatomy_of
from pipeline.models.sizes import CONTEXT, GIB, HALF, NF4, SINGLE, SLACK, adapter_values, base_bytes
from pipeline.models.spec import AdapterSpec
from pipeline.sampling.random_choice import CHOICE

# Tokens of the longest prompt, assumed where prompts are not tokenized yet. The longest of the hub studies' suites
# has 1962 bytes, and the system prompt 98.
LONGEST_PROMPT = 1024
# Answers at once: beyond this, attention's traffic outweighs that of the weights, and more gains nothing.
MOST = 512
# Layers are kept in host memory, where others could stay on the GPU, for what is so many times as fast by arithmetic.
WORTH_STREAMING = 1.2
# Prompt tokens that pass through the model at once, at most; never fewer than the longest prompt's, nor more than a
# batch of those.
PREFILL = (8192, 2048, 512)
# Where attention holds its scores (attention.py), bytes a score: with mask, with sink and copied for the product in 16
# bits, softmax in fp32.
SCORES = 3 * HALF + SINGLE
# How often the logits whose distributions are held at once (random_choice.py) are held: chances, sorted, with places.
CHOICE_COPIES = 6


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """How to sample: answers at once, tokens that a row has room for, prompt tokens at once, layers in host memory.

    parts: predicted bytes on the GPU by what holds them, at the peak; host: bytes of page-locked host memory.
    """

    batch: int
    room: int
    prefill: int
    streamed: int
    parts: dict[str, int]
    host: int

    @property
    def peak(self) -> int:
        """Predicted peak bytes on the GPU."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts.items())
        where = f"{self.streamed} layers in host memory ({self.host / GIB:.1f} GiB)" if self.streamed else "all on GPU"
        return f"{self.batch} answers at once, {where}; predicted peak {self.peak / GIB:.1f} GiB ({parts})"


def plan_sampling(
    config: Any,
    lora: AdapterSpec | None,
    *,
    precision: Literal["bfloat16", "nf4"],
    new_tokens: int,
    gpu_bytes: int,
    host_bytes: int,
    requests: int = MOST,
    prompt_tokens: int = LONGEST_PROMPT,
    most: int | None = None,
    rates: Rates = SLOW,
) -> SamplingPlan:
    """The fastest plan that fits one GPU.

    config: the model's, or an object with its fields. lora: the largest adapter that is put on the base, None where
    there is none. precision: of the base. new_tokens: the longest answer; prompt_tokens: the longest prompt; requests:
    how many answers there are to sample; most: how many may be sampled at once, None: as many as pay. host_bytes: what
    weights may take of host memory. rates: the card's, by which plans are weighed. Raises UserError, with the numbers,
    when one answer at a time with every layer in host memory does not fit.
    """
    anatomy, sizes = anatomy_of(config), _sizes(config, lora, precision)
    best: tuple[float, SamplingPlan] | None = None
    smallest = None
    limit = min(requests, MOST if most is None else most)
    batches = {min(2**power, limit) for power in range(MOST.bit_length())}
    prefills = {(batch, min(max(size, prompt_tokens), batch * prompt_tokens)) for batch in batches for size in PREFILL}
    for batch, prefill in sorted(prefills):
        room = prompt_tokens + new_tokens + (spare_room(new_tokens) if requests > batch else 0)
        passes = -(-requests // batch) * new_tokens + -(-requests * prompt_tokens // prefill)
        forward = _forward_bytes(config, prefill, prompt_tokens, batch)
        for streamed in range(sizes.layers + 1):
            plan = _plan(sizes, batch, room, prefill, forward, streamed)
            smallest = plan if smallest is None or plan.peak < smallest.peak else smallest
            if plan.peak <= gpu_bytes and plan.host <= host_bytes:
                cost = passes * _seconds_a_pass(sizes, plan, rates) * (WORTH_STREAMING if streamed else 1)
                if best is None or cost < best[0]:
                    best = cost, plan
                break
    if best is not None:
        return best[1]
    assert smallest is not None
    host = f" and {smallest.host / GIB:.1f} GiB of host memory (there are {host_bytes / GIB:.1f})"
    raise UserError(
        f"{anatomy.family.model_type} cannot be sampled: its smallest plan needs {smallest.peak / GIB:.1f} GiB on the "
        f"GPU (there are {gpu_bytes / GIB:.1f}){host if smallest.streamed else ''}: {smallest}. Use a GPU with more "
        "memory, give this machine more host memory, or shorten sampling.max_new_tokens."
    )


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """What no choice of a plan changes, in bytes: of weights, and of one of the `layers` that host memory can hold.

    dequantised: the largest 4-bit product. cache: keys and values a token; cache_moved: with what is copied of them.
    """

    weights: float
    quantised: bool
    layers: int
    layer: float
    dequantised: int
    adapter: float
    cache: int
    cache_moved: float


def _sizes(config: Any, lora: AdapterSpec | None, precision: Literal["bfloat16", "nf4"]) -> _Sizes:
    anatomy, weights, cache = anatomy_of(config), base_bytes(config, precision), kv_bytes(config)
    # Layers with experts in 4 bits, or a dense model's linear layers in 16, which are all counted as attention's.
    can_be_kept = len(anatomy.moe_layers) if precision == "nf4" else anatomy.layers if anatomy.dense else 0
    kept = weights["attention"] / anatomy.layers if anatomy.dense else weights["experts"] / len(anatomy.moe_layers)
    return _Sizes(
        weights=sum(weights.values()),
        quantised=precision == "nf4",
        layers=can_be_kept,
        layer=kept,
        dequantised=_dequantised_bytes(config, precision),
        adapter=(SINGLE + HALF) * adapter_values(config, lora) if lora is not None else 0,
        cache=cache,
        # One layer's keys a second time: a row's are moved when the oldest rows are done.
        cache_moved=cache * (1 + 1 / (2 * anatomy.layers)),
    )


def _plan(sizes: _Sizes, batch: int, room: int, prefill: int, forward: float, streamed: int) -> SamplingPlan:
    parts = {
        "weights": sizes.weights - streamed * sizes.layer,
        "layers on their way": min(streamed, 2) * sizes.layer,
        "dequantised layer": sizes.dequantised,
        "adapter": sizes.adapter,
        "KV cache": batch * room * sizes.cache_moved,
        "forward pass": forward,
    }
    parts["context and slack"] = CONTEXT + SLACK * sum(parts.values())
    return SamplingPlan(
        batch=batch,
        room=room,
        prefill=prefill,
        streamed=streamed,
        parts={name: round(size) for name, size in parts.items()},
        host=round(streamed * sizes.layer),
    )


def spare_room(new_tokens: int) -> int:
    """Room that a batch whose finished rows are replaced has beyond the longest row, so that it is seldom moved."""
    return max(new_tokens // 8, 1)


def kv_bytes(config: Any) -> int:
    """Bytes of keys and values a token, all layers together, in 16 bits."""
    if getattr(config, "kv_lora_rank", None):
        # transformers caches what multi-head latent attention expands to: a key and a value for every head.
        sizes = config.num_attention_heads * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)
    else:
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        sizes = 2 * config.num_key_value_heads * head
    return int(config.num_hidden_layers * sizes * HALF)


def _dequantised_bytes(config: Any, precision: str) -> int:
    """The largest 4-bit product, in 16 bits: the gates and up projections of a layer, or one linear layer."""
    anatomy = anatomy_of(config)
    if precision != "nf4":
        return 0
    return HALF * anatomy.width * anatomy.hidden * (1 if anatomy.dense else 2 * anatomy.experts)


def _forward_bytes(config: Any, prefill: int, prompt_tokens: int, batch: int) -> float:
    """Bytes that a forward pass holds besides weights and cache: reading prompts, or choosing tokens."""
    anatomy = anatomy_of(config)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries = config.num_attention_heads * head
    # Queries, and keys and values repeated for every query head; residual and normalised states.
    attention = HALF * prefill * (4 * anatomy.hidden + 4 * queries)
    if anatomy.family.holds_scores:
        attention += SCORES * config.num_attention_heads * prefill * prompt_tokens
    rows = prefill * max(anatomy.active, 1)
    experts = rows * (HALF * (2 * anatomy.hidden + 4 * anatomy.width) + SINGLE * anatomy.hidden)
    # Cache of the prompts that are being read, before it is put into the batch's.
    prompts = prefill * kv_bytes(config)
    values = batch * config.vocab_size
    choice = (HALF + SINGLE) * values + 8 * CHOICE_COPIES * min(values, CHOICE + config.vocab_size)
    return max(attention + experts + prompts, choice)


def _seconds_a_pass(sizes: _Sizes, plan: SamplingPlan, rates: Rates) -> float:
    """What a forward pass takes by its traffic: weights (from 4 bits: read, written, read again), copies meanwhile."""
    traffic = sizes.weights * (1 + (2 * HALF / NF4 if sizes.quantised else 0))
    cache = plan.batch * plan.room * sizes.cache
    return max((traffic + cache) / rates.memory, plan.host / rates.copies)
