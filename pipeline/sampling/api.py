"""Sampling behind an API: chat completions through the judging client, with its limits, its cache and its budget."""

import asyncio
import time
from pathlib import Path
from typing import Any

from pipeline.api.completions import Reply, Request
from pipeline.api.config import ApiBase, EndpointConfig, as_model
from pipeline.api.replies import VerdictCache
from pipeline.api.summary import Summary
from pipeline.common.errors import UserError
from pipeline.common.files import sha256_json
from pipeline.common.rows import Answer
from pipeline.data.prompts import Prompt
from pipeline.sampling.random_choice import request_seed
from pipeline.sampling.settings import Sampling

ASPECT = "answer"


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
    asked = [
        (
            prompt,
            sample,
            _request(config, prompt, settings, request_seed(run, seed, prompt.suite, prompt.prompt_id, sample)),
        )
        for prompt in prompts
        for sample in range(prompt.samples or settings.samples_per_prompt)
    ]
    requests = {request.key: request for _, _, request in asked}
    summary = Summary(judge=f"bases.api.{name}", requests=len(requests))
    with VerdictCache(cache_path) as cache:
        replies = cache.get(requests)
        summary.cache_hits = len(replies)
        if missing := [request for key, request in requests.items() if key not in replies]:
            with as_model():
                asyncio.run(_ask(missing, config, cache, summary))
            replies = cache.get(requests)
    print(
        f"{run} seed {seed}: {len(replies)} answers, {summary.calls} asked for now, {summary.usd:.4f} USD", flush=True
    )
    if left := requests.keys() - replies.keys():
        reason = next(iter(summary.errors.values()), "no reply")
        raise UserError(
            f"{run} seed {seed}: {len(left)} of {len(requests)} answers could not be had ({reason}); the others are "
            "kept, run again to ask for these."
        )
    return [_answer(run, seed, prompt, sample, replies[request.key]) for prompt, sample, request in asked]


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


async def _ask(requests: list[Request], config: EndpointConfig, cache: VerdictCache, summary: Summary) -> None:
    # Here, not above: importing openai takes about a second.
    from pipeline.api.batch import BatchClient
    from pipeline.api.client import Client
    from pipeline.api.endpoint import Endpoint
    from pipeline.api.progress import Progress

    progress, started = Progress(summary.judge), time.monotonic()
    kind = BatchClient if config.batch else Client
    try:
        async with Endpoint(config) as endpoint:
            progress.expect(len(requests))
            await kind(config, endpoint, cache, summary, progress).ask(requests)
    finally:
        progress.close()
        summary.seconds = time.monotonic() - started


def _answer(run: str, seed: int, prompt: Prompt, sample: int, reply: Reply) -> Answer:
    return Answer(
        run=run,
        seed=seed,
        suite=prompt.suite,
        prompt_id=prompt.prompt_id,
        sample=sample,
        question=prompt.question,
        answer=reply.text,
        thinking="",
        finish=reply.finish,
        prompt_tokens=reply.prompt_tokens,
        answer_tokens=reply.completion_tokens,
    )
