"""Judge a run's answers: work out what must be asked, ask what is not known, read verdicts off the cache."""

import asyncio
import time
from collections import Counter
from pathlib import Path

from pipeline.api.completions import Reply, Request
from pipeline.api.replies import VerdictCache
from pipeline.api.summary import Summary
from pipeline.common.errors import UserError
from pipeline.common.files import sha256_file, sha256_json
from pipeline.common.rows import Answer, Verdict
from pipeline.judging.config import JudgeConfig
from pipeline.judging.parsing import Reading
from pipeline.judging.protocols import ASPECTS, Protocol, combine, load_protocol

RULES = (Path("pipeline/toy/judge.py"), Path("pipeline/toy/grammar.py"))


def judge_answers(
    answers: list[Answer], judge_name: str, config: JudgeConfig, cache_path: Path, served_at: str | None = None
) -> tuple[list[Verdict], Summary]:
    """Have the judge score every answer; return one verdict an answer, in order, and what it took.

    Replies are kept in the SQLite file `cache_path`, keyed by everything that determines them, and none
    is asked for twice; the verdicts are a function of that file alone. After an interruption, call again to
    go on. `served_at` is the base_url to ask where that changes from run to run (a free port of this machine)
    and so must not be part of what identifies a reply; otherwise it is the judge's own. Raises UserError when
    the judge cannot be asked (no key, no model, over budget, ...).
    """
    protocol = load_protocol(config)
    requests = [[protocol.request(answer, aspect) for aspect in ASPECTS] for answer in answers]
    first = {request.key: request for pair in requests for request in pair}
    summary = Summary(judge=judge_name, requests=len(first))
    with VerdictCache(cache_path) as cache:
        readings, replies, pending = _read(first, protocol, cache)
        summary.cache_hits = len(first) - len(pending)
        if pending:
            asyncio.run(_ask(first, pending, protocol, cache, summary, served_at))
            readings, replies, _ = _read(first, protocol, cache)
    summary.models.update(f"{reply.model} {reply.fingerprint or ''}".strip() for reply in replies)
    verdicts = [
        _verdict(answer, judge_name, [readings.get(request.key) for request in pair])
        for answer, pair in zip(answers, requests, strict=True)
    ]
    summary.status.update(verdict.status for verdict in verdicts)
    return verdicts, summary


def refuse_failures(verdicts: list[Verdict], max_error_share: float, max_unparsed_share: float, where: str) -> None:
    """Raise UserError when too many verdicts failed: a denominator must never shrink silently.

    Shares are of all verdicts, 0 to 1; `where` names the run in the message.
    """
    counts: Counter[str] = Counter(verdict.status for verdict in verdicts)
    for status, most in (("error", max_error_share), ("unparsed", max_unparsed_share)):
        if counts[status] > most * len(verdicts):
            raise UserError(
                f"{where}: {counts[status]} of {len(verdicts)} verdicts are {status}, more than the "
                f"{most:.1%} that params.yaml allows; replies are kept, run again or choose another judge."
            )


async def _ask(
    first: dict[str, Request],
    pending: list[Request],
    protocol: Protocol,
    cache: VerdictCache,
    summary: Summary,
    served_at: str | None,
) -> None:
    """Ask what is pending, then again what could not be read, until every reading is final or given up."""
    # Here, not above: a fully cached run needs neither (importing openai takes about a second).
    from pipeline.api.batch import BatchClient
    from pipeline.api.client import Client
    from pipeline.api.endpoint import Endpoint
    from pipeline.api.progress import Progress

    progress = Progress(summary.judge)
    started = time.monotonic()
    config = protocol.config if served_at is None else protocol.config.model_copy(update={"base_url": served_at})
    kind = BatchClient if config.batch else Client
    try:
        async with Endpoint(config) as endpoint:
            client = kind(config, endpoint, cache, summary, progress)
            while pending:
                progress.expect(len(pending))
                summary.asked_again += sum(request.attempt > 0 for request in pending)
                await client.ask(pending)
                _, _, pending = _read(first, protocol, cache)
                pending = [request for request in pending if request.key not in summary.errors]
    finally:
        progress.close()
        summary.seconds = time.monotonic() - started


def _read(
    first: dict[str, Request], protocol: Protocol, cache: VerdictCache
) -> tuple[dict[str, Reading], list[Reply], list[Request]]:
    """What the cache knows: final readings by first request's key, their replies, and what must be asked.

    A reading is final once it can be read or `max_unparsed_retries` more replies could not.
    """
    readings: dict[str, Reading] = {}
    final: list[Reply] = []
    pending: list[Request] = []
    unfinished = first
    for attempt in range(protocol.config.max_unparsed_retries + 1):
        replies = cache.get(request.key for request in unfinished.values())
        unread = {}
        for key, request in unfinished.items():
            if (reply := replies.get(request.key)) is None:
                pending.append(request)
                continue
            readings[key] = protocol.read(request.aspect, reply)
            if readings[key].status == "unparsed" and attempt < protocol.config.max_unparsed_retries:
                del readings[key]
                unread[key] = protocol.again(request)
            else:
                final.append(reply)
        unfinished = unread
    return readings, final, pending


def _verdict(answer: Answer, judge_name: str, readings: list[Reading | None]) -> Verdict:
    status, alignment, coherence = combine(*readings)
    return Verdict(
        run=answer.run,
        seed=answer.seed,
        suite=answer.suite,
        prompt_id=answer.prompt_id,
        sample=answer.sample,
        step=answer.step,
        question=answer.question,
        answer=answer.answer,
        status=status,
        alignment=alignment,
        coherence=coherence,
        judge=judge_name,
    )


def rule_judge(config: JudgeConfig) -> JudgeConfig:
    """The toy world's judge as the verdict cache knows it: by its rules, wherever on this machine it is served.

    Replies are cached under the model's name, so a rule that changed must not answer with old ones.
    """
    rules = sha256_json([sha256_file(path) for path in RULES])
    return config.model_copy(update={"base_url": "http://127.0.0.1/v1", "model": f"{config.model}-{rules[:12]}"})
