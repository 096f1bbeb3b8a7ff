"""Sampling behind an API: chat completions through the endpoint's client, with its limits, its cache and its budget."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pipeline.api.completions import REFUSED, Reply, Request
from pipeline.api.config import ApiBase, EndpointConfig
from pipeline.api.replies import ReplyCache
from pipeline.api.summary import Summary
from pipeline.common.errors import UserError
from pipeline.common.files import sha256_json
from pipeline.common.rows import Answer
from pipeline.common.text import split_thinking
from pipeline.data.prompts import Prompt
from pipeline.sampling.answers import answer_rows, requests_of
from pipeline.sampling.backend import Completion
from pipeline.sampling.settings import Sampling

ASPECT = "answer"
# A refusal that the API gives a field of its own is what the model said.
_FINISHES: dict[str, Literal["stop", "length"]] = {"stop": "stop", "length": "length", REFUSED: "stop"}


def answers(
    name: str,
    base: ApiBase,
    tuned: str | None,
    prompts: list[Prompt],
    settings: Sampling,
    run: str,
    seed: int,
    cache_path: Path,
) -> list[Answer]:
    """One seed's answers of the base `name`, or of `tuned`, to every prompt, `samples_per_prompt` times, in order.

    Replies are kept in the SQLite file `cache_path` and none is paid for twice. Raises UserError when the model
    cannot be asked, when its budget is spent, or when an answer cannot be had: what there is is kept then.
    """
    config = base.client(tuned, max_reply_tokens=settings.max_new_tokens)
    asked = requests_of(run, seed, prompts, settings.samples_per_prompt)
    sent = [_request(config, one.prompt, settings, one.seed) for one in asked]
    requests = {request.key: request for request in sent}
    summary = Summary(kind=config.kind, account=f"bases.api.{name}", model=config.model, requests=len(requests))
    with ReplyCache(cache_path) as cache:
        replies = cache.get(requests)
        summary.cache_hits = len(replies)
        if missing := [request for key, request in requests.items() if key not in replies]:
            asyncio.run(_complete_all(missing, config, cache, summary))
            replies = cache.get(requests)
    summary.models.update(reply.model for reply in replies.values())
    answered = f"{len(replies)} answers, {summary.calls} asked for now, {summary.usd:.4f} USD"
    print("\n".join([f"{run} seed {seed}: {answered}", *summary.warnings()]), flush=True)
    reasons = {key: summary.errors.get(key, "no reply") for key in requests.keys() - replies.keys()}
    reasons |= {
        key: f"its finish_reason is {reply.finish!r}" for key, reply in replies.items() if reply.finish not in _FINISHES
    }
    if reasons:
        raise UserError(
            f"{run} seed {seed}: {len(reasons)} of {len(requests)} answers could not be had "
            f"({Counter(reasons.values()).most_common(1)[0][0]}); the others are kept, run again to ask for these."
        )
    return answer_rows(run, seed, asked, [_completion(replies[request.key]) for request in sent])


def _request(config: EndpointConfig, prompt: Prompt, settings: Sampling, seed: int) -> Request:
    messages = prompt.chat()
    if prompt.system is None and settings.system is not None:
        messages = [{"role": "system", "content": settings.system}, *messages]
    body: dict[str, Any] = {
        "model": config.model,
        "messages": messages,
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": seed >> 32,  # 31 bits: JSON's numbers are doubles to some servers
    }
    return Request(sha256_json({"endpoint": config.endpoint, "body": body}), ASPECT, 0, body)


async def _complete_all(requests: list[Request], config: EndpointConfig, cache: ReplyCache, summary: Summary) -> None:
    from pipeline.api.asking import open_client  # imports aiohttp

    async with open_client(config, cache, summary) as (client, progress):
        progress.expect(len(requests))
        await client.complete_all(requests)


def _completion(reply: Reply) -> Completion:
    thinking, text = split_thinking(reply.text)
    return Completion(
        text=text,
        thinking=thinking,
        finish=_FINISHES[reply.finish],
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
    )
