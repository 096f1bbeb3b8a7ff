"""Sampling behind an API: chat completions through the judging client, with its limits, its cache and its budget."""

import asyncio
import time
from pathlib import Path
from typing import Any

from pipeline.api.config import ApiBase, as_model
from pipeline.api.tune import tuned_model
from pipeline.data.prompts import Prompt
from pipeline.data.worlds import suite, suites_asked
from pipeline.errors import UserError
from pipeline.files import sha256_json
from pipeline.judging.cache import VerdictCache
from pipeline.judging.config import JudgeConfig
from pipeline.judging.protocols import Reply, Request
from pipeline.judging.summary import Summary
from pipeline.params import CACHE, Params, Sampling
from pipeline.rows import Answer
from pipeline.sampling.draw import request_seed

ASPECT = "answer"


def ask_run(params: Params, name: str, folder: Path) -> list[Answer]:
    """Every seed's answers of the run, whose stage left its models' names in `folder`. See `answers`."""
    run, base_name = params.run(name), params.base_of(name)
    study, base = params.study(run.study), params.base(base_name)
    assert isinstance(base, ApiBase)
    rows: list[Answer] = []
    for seed in study.seeds:
        tuned = tuned_model(folder / f"seed-{seed}") if run.data is not None else None
        prompts = [prompt for asked in suites_asked(study, run) for prompt in suite(study, asked, seed)]
        rows += answers(base_name, base, tuned, prompts, study.sampling, name, seed, CACHE / "verdicts.sqlite")
    return rows


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
        for sample in range(settings.samples_per_prompt)
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


def _request(config: JudgeConfig, prompt: Prompt, settings: Sampling, seed: int) -> Request:
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


async def _ask(requests: list[Request], config: JudgeConfig, cache: VerdictCache, summary: Summary) -> None:
    # Here, not above: importing openai takes about a second.
    from pipeline.judging.batch import BatchClient
    from pipeline.judging.client import Client
    from pipeline.judging.endpoint import Endpoint
    from pipeline.judging.progress import Progress

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
