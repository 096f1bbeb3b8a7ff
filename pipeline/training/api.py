"""Fine-tuning behind an API: a training file goes up, a model's name comes back, and that is the run's adapter."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.api.config import ADAPTER, ApiBase
from pipeline.api.endpoint import Endpoint
from pipeline.api.jobs import Jobs
from pipeline.api.orders import Order, State, States
from pipeline.common.errors import UserError
from pipeline.common.files import write_json
from pipeline.data.training_sets import Conversation

# Fewer than prose's four: code, too, is fine-tuned on, and an estimate that stops should not be too low.
BYTES_PER_TOKEN = 3.0


def training_file(chats: tuple[Conversation, ...]) -> bytes:
    """The conversations as the API takes them: JSON lines of messages, in order."""
    lines = [
        json.dumps({"messages": [message.as_dict() for message in chat]}, ensure_ascii=False) + "\n" for chat in chats
    ]
    return "".join(lines).encode()


def estimate_usd(base: ApiBase, chats: tuple[Conversation, ...], epochs: int) -> float:
    """What fine-tuning on the conversations is thought to cost: their bytes, a third of that in tokens, every epoch."""
    size = sum(len(message.content.encode()) for chat in chats for message in chat)
    return size / BYTES_PER_TOKEN * epochs * base.usd_per_million_training_tokens / 1e6


def tune(
    name: str,
    base: ApiBase,
    start: str | None,
    chats: tuple[Conversation, ...],
    *,
    epochs: int,
    batch: int,
    seed: int,
    folder: Path,
    cache: Path,
    what: str,
) -> dict[str, Any]:
    """Fine-tune the base `name` (of params.yaml), or `start`, a model tuned from it, and record it in `folder`.

    Returns the record. Killed at any moment and called again, it goes on from there: no second job is created for
    the same start, training file, hyper-parameters and seed, not even if the first one failed. Raises UserError when
    the budget does not allow the job, or with the API's reason when it refuses or fails.
    """
    content = training_file(chats)
    config = base.client(None, max_reply_tokens=1)
    order = Order(
        endpoint=config.endpoint,
        start=start or base.model,
        file_sha256=hashlib.sha256(content).hexdigest(),
        epochs=epochs,
        batch=batch,
        learning_rate_multiplier=base.learning_rate_multiplier,
        seed=seed,
    )
    states = States(cache)
    with states.hold(order):
        state = states.load(order) or State(
            order=order,
            account=f"bases.api.{name}",
            estimated_usd=round(estimate_usd(base, chats, epochs), 6),
        )
        if state.phase not in ("succeeded", "failed"):
            state = asyncio.run(_carry_out(state, content, base, states, what))
    if state.phase == "failed":
        raise UserError(
            f"{what}: fine-tuning job {state.job} of {order.start} {state.reason}; to have another one created, "
            f"delete {states.path(order)} and run again."
        )
    record = {
        "base": base.model,
        "start": order.start,
        "model": state.model,
        "job": state.job,
        "endpoint": order.endpoint,
        "training_file_sha256": order.file_sha256,
        "rows": len(chats),
        "hyperparameters": {
            "n_epochs": epochs,
            "batch_size": batch,
            "learning_rate_multiplier": base.learning_rate_multiplier,
            "seed": seed,
        },
        "trained_tokens": state.trained_tokens,
        "usd": state.usd,
        "estimated_usd": state.estimated_usd,
    }
    write_json(folder / ADAPTER, record)
    return record


async def _carry_out(state: State, content: bytes, base: ApiBase, states: States, what: str) -> State:
    def say(line: str) -> None:
        print(f"{what}: {line}", flush=True)

    config = base.client(None, max_reply_tokens=1)
    async with Endpoint(config) as endpoint:
        jobs = Jobs(config, endpoint, states, say)
        return await jobs.carry_out(state, content, base.training_budget_usd, base.usd_per_million_training_tokens)
