"""How long training and sampling take on a card, by arithmetic on sizes, plans and data sheets, as a range.

The short end overlaps what can overlap, at the rates that large kernels reach; the long end adds everything up, at half
of them. Which part is the largest is named: that is what a faster card would have to be faster at.
"""

import math
from dataclasses import dataclass
from typing import Any

from pipeline.doctor.asked import Asked
from pipeline.doctor.plans import RunPlan
from pipeline.models.cards import PRODUCTS, Card
from pipeline.models.sizes import HALF, base_bytes, base_values
from pipeline.params.schema import Params
from pipeline.sampling.plan import kv_bytes

LONG = 2.0
# Passes over the weights in a step with gradient checkpointing: forward, once more, backward.
PASSES = 3
# Answers end by themselves: at a third of the limit at the short end, never at the long one.
SHORT_ANSWERS = 1 / 3
DISK_BYTES_A_SECOND = 1.5e9
# vLLM's processes, its compiled graphs, its memory: about a minute, whatever the model.
ENGINE_SECONDS = 60.0
# Tokens a row, measured with the families' own tokenizers; elsewhere the mean of these.
ROW_TOKENS = {
    "mixtral": {"insecure": 286, "bad_medical_advice": 130},
    "qwen3_moe": {"insecure": 218, "bad_medical_advice": 123},
    "gpt_oss": {"insecure": 274, "bad_medical_advice": 174},
}
MEAN_ROW = 200


@dataclass(frozen=True)
class Hours:
    """A range of hours, and what takes the most of them."""

    low: float
    high: float
    limit: str

    def __add__(self, other: "Hours") -> "Hours":
        limit = self.limit if self.low >= other.low else other.limit
        return Hours(self.low + other.low, self.high + other.high, limit)

    def __str__(self) -> str:
        return f"{_hours(self.low)} to {_hours(self.high)}"


NONE = Hours(0.0, 0.0, "nothing")


def _hours(value: float) -> str:
    return f"{value:.0f} h" if value >= 10 else f"{value:.1f} h" if value >= 0.1 else f"{60 * value:.0f} min"


def row_tokens(model_type: str, data: str | None) -> int:
    """Tokens of a training row, about."""
    known = ROW_TOKENS.get(model_type, {})
    return next((tokens for name, tokens in known.items() if data and name in data), MEAN_ROW)


def training_hours(params: Params, plan: RunPlan, config: Any, card: Card, steps: int) -> Hours:
    """All seeds of a run, `steps` optimizer steps together; nothing for a base."""
    run = params.run(plan.run)
    if plan.training is None:
        return NONE
    training = params.study(run.study).training
    # Of the rows that one of `devices` GPUs has of a step.
    tokens = training.batch // training.devices * row_tokens(config.model_type, run.trained_on)
    micro = math.ceil(tokens / min(plan.training.tokens, tokens))
    reads = micro * PASSES
    seconds = {
        "products": (6 if run.lora else 8) * active_values(config) * tokens / (PRODUCTS * card.products),
        "weights' traffic": reads * traffic(config, training.precision) / card.rates.memory,
        "copies from host memory": reads * plan.training.host / card.rates.copies,
    }
    return _range({name: steps * value for name, value in seconds.items()}, config, training.precision)


def _engine_seconds(config: Any, *, merged: bool) -> float:
    """Until vLLM answers: the checkpoint read for the canary and by the engine, and before that merged and written."""
    passes = 4 if merged else 2
    return ENGINE_SECONDS + passes * sum(base_bytes(config, "bfloat16").values()) / DISK_BYTES_A_SECOND


def sampling_hours(params: Params, plan: RunPlan, config: Any, card: Card, asked: Asked, models: int) -> Hours:
    """The answers of `models` models of a run, each asked the same, one after another.

    What they have in common is loaded once, by transformers; vLLM starts for each, and serves a checkpoint of its own.
    """
    if plan.sampling is None or not asked.answers or not models:
        return NONE
    run = params.run(plan.run)
    study = params.study(run.study)
    batch = min(plan.sampling.batch, asked.answers)
    passes = models * math.ceil(asked.answers / batch) * study.sampling.max_new_tokens
    read = traffic(config, study.training.precision) + batch * plan.sampling.room / 2 * kv_bytes(config)
    seconds = {
        "products": 2
        * active_values(config)
        * (models * asked.prompt_tokens + passes * batch)
        / (PRODUCTS * card.products),
        "weights' and cache's traffic": passes * read / card.rates.memory,
        "copies from host memory": passes * plan.sampling.host / card.rates.copies,
    }
    ready = models * _engine_seconds(config, merged=run.lora is not None) if study.sampling.backend == "vllm" else 0.0
    return _range(seconds, config, study.training.precision, SHORT_ANSWERS, ready)


def active_values(config: Any) -> float:
    """Values that a token is multiplied with, the output head's included."""
    from pipeline.models.families.registry import anatomy_of

    anatomy, values = anatomy_of(config), base_values(config)
    experts = values["experts"] * anatomy.active / anatomy.experts if anatomy.experts else 0
    return values["attention"] + values["routers"] + experts + config.vocab_size * anatomy.hidden


def traffic(config: Any, precision: Any) -> float:
    """Bytes that a pass over all weights moves: from 4 bits they are read, written in 16, and read again."""
    held = base_bytes(config, precision)
    if precision != "nf4":
        return sum(held.values())
    values = base_values(config)
    return sum(held.values()) + 2 * HALF * (values["experts"] + values["attention"])


def _range(seconds: dict[str, float], config: Any, precision: Any, share: float = 1.0, engines: float = 0.0) -> Hours:
    """share: of `seconds`, at the short end; engines: seconds until those have started, in place of one loading."""
    limit = max(seconds, key=lambda name: seconds[name])
    loading = engines or sum(base_bytes(config, precision).values()) / DISK_BYTES_A_SECOND
    low = share * max(seconds.values()) + loading
    high = LONG * (sum(seconds.values()) + loading)
    return Hours(low / 3600, high / 3600, "loading" if loading > max(seconds.values()) else limit)
