"""Judge a run's answers: work out what must be asked, ask what is not known, read verdicts off the cache."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pipeline.api.completions import Reply, Request
from pipeline.api.replies import ReplyCache
from pipeline.api.summary import Summary
from pipeline.common.errors import UserError
from pipeline.common.rows import Answer, Verdict
from pipeline.judging.aspects import ASPECTS
from pipeline.judging.config import JudgeConfig
from pipeline.judging.parsing import Reading
from pipeline.judging.preflight import check_preflight, preflight_request
from pipeline.judging.protocols import Protocol, combine, load_protocol

Server = Callable[[], contextlib.AbstractContextManager[str]]


def judge_answers(
    answers: list[Answer], judge_name: str, config: JudgeConfig, cache_path: Path, server: Server | None = None
) -> tuple[list[Verdict], Summary]:
    """Have the judge score every answer; return one verdict an answer, in order, and what it took.

    Replies are kept in the SQLite file `cache_path`, keyed by everything that determines them, and none
    is asked for twice; the verdicts are a function of that file alone. After an interruption, call again to
    go on. `server` serves the judge on this machine, if anything must be asked, and gives its base_url, which changes
    from run to run and so is no part of what identifies a reply; without it the judge's own is asked. Raises UserError
    when the judge cannot be asked (no key, no model, over budget, ...).
    """
    protocol = load_protocol(config)
    requests = [[protocol.request(answer, aspect) for aspect in protocol.aspects] for answer in answers]
    first = {request.key: request for several in requests for request in several}
    summary = Summary(kind=config.kind, account=judge_name, model=config.model, requests=len(first))
    with ReplyCache(cache_path) as cache:
        final, pending = _read(first, protocol, cache)
        summary.cache_hits = len(first) - len(pending)
        if pending:
            with contextlib.nullcontext() if server is None else server() as served_at:
                asyncio.run(_complete_all(first, pending, protocol, cache, summary, served_at))
            final, _ = _read(first, protocol, cache)
    summary.models.update(f"{reply.model} {reply.fingerprint or ''}".strip() for reply, _ in final.values())
    verdicts = [
        _verdict(answer, judge_name, several, final, summary.errors)
        for answer, several in zip(answers, requests, strict=True)
    ]
    summary.status.update(verdict.status for verdict in verdicts)
    return verdicts, summary


def refuse_failures(
    verdicts: list[Verdict], max_error_share: float, max_unparsed_share: float, where: str, of: int = 0
) -> None:
    """Raise UserError when too many verdicts failed: a denominator must never shrink silently.

    Shares are of all verdicts, 0 to 1; `where` names the run in the message. of: how many there will be in the end,
    where these are not all: what later ones could still make up for is not refused.
    """
    count = max(of, len(verdicts))
    for status, most in (("error", max_error_share), ("unparsed", max_unparsed_share)):
        failed = [verdict for verdict in verdicts if verdict.status == status]
        if len(failed) > most * count:
            reason, _ = Counter(verdict.reason for verdict in failed).most_common(1)[0]
            raise UserError(
                f"{where}: {len(failed)} of {len(verdicts)} verdicts are {status}, more than the {most:.1%} that "
                f"params.yaml allows (most often: {reason}); replies are kept, run again or choose another judge."
            )
    for aspect in dict.fromkeys(aspect for verdict in verdicts for aspect in verdict.values):
        missing = sum(verdict.values.get(aspect) is None for verdict in verdicts)
        if missing > max_unparsed_share * count:
            raise UserError(
                f"{where}: {missing} of {len(verdicts)} verdicts have no {aspect}, more than the "
                f"{max_unparsed_share:.1%} that params.yaml allows; does its template ask for what `read` says?"
            )


Final = dict[str, tuple[Reply, Reading]]  # the reply that decides and what it says, by the first request's key


async def _complete_all(
    first: dict[str, Request],
    pending: list[Request],
    protocol: Protocol,
    cache: ReplyCache,
    summary: Summary,
    served_at: str | None,
) -> None:
    """Ask what is pending, then again what could not be read, until every reading is final or given up."""
    from pipeline.api.asking import open_client  # not above: a fully cached run needs no HTTP

    config = protocol.config if served_at is None else protocol.config.model_copy(update={"base_url": served_at})
    async with open_client(config, cache, summary) as (client, progress):
        if known := preflight_request(protocol):
            if not cache.get([known.key]):
                progress.expect(1)
                await client.complete_all([known])
            if reply := cache.get([known.key]).get(known.key):
                check_preflight(reply, config)
        while pending:
            progress.expect(len(pending))
            summary.asked_again += sum(request.attempt > 0 for request in pending)
            await client.complete_all(pending)
            _, pending = _read(first, protocol, cache)
            pending = [request for request in pending if request.key not in summary.errors]


def _read(first: dict[str, Request], protocol: Protocol, cache: ReplyCache) -> tuple[Final, list[Request]]:
    """What the cache knows: final readings, and what must be asked.

    A reading is final once it can be read or `max_unparsed_retries` more replies could not.
    """
    final: Final = {}
    pending: list[Request] = []
    unfinished = first
    for attempt in range(protocol.config.max_unparsed_retries + 1):
        replies = cache.get(request.key for request in unfinished.values())
        unread = {}
        for key, request in unfinished.items():
            if (reply := replies.get(request.key)) is None:
                pending.append(request)
                continue
            reading = protocol.read(request.aspect, reply)
            if reading.status == "unparsed" and attempt < protocol.config.max_unparsed_retries:
                unread[key] = protocol.again(request)
            else:
                final[key] = (reply, reading)
        unfinished = unread
    return final, pending


def _verdict(answer: Answer, judge_name: str, requests: list[Request], final: Final, errors: dict[str, str]) -> Verdict:
    found = {request.aspect: final[request.key] for request in requests if request.key in final}
    readings = {aspect: reading for aspect, (_, reading) in found.items()}
    status, alignment, coherence = combine(*(readings.get(aspect) for aspect in ASPECTS))
    own = [request.aspect for request in requests if request.aspect not in ASPECTS]
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
        values={aspect: _value(readings.get(aspect)) for aspect in own},
        replies={aspect: reply.top_logprobs or reply.text for aspect, (reply, _) in found.items()},
        reason=_reason(requests, readings, errors),
    )


def _value(reading: Reading | None) -> float | str | None:
    return None if reading is None else reading.score if reading.label is None else reading.label


def _reason(requests: list[Request], readings: dict[str, Reading], errors: dict[str, str]) -> str | None:
    """Why a row, or an aspect of it, has no score: the failure of a request, or what was wrong with its last reply."""
    reasons = []
    for request in requests:
        reading = readings.get(request.aspect)
        if reading is None:
            reasons.append(f"{request.aspect}: {errors.get(request.key, 'no reply to a repeated request')}")
        elif reading.reason is not None:
            reasons.append(f"{request.aspect}: {reading.reason}")
    return "; ".join(reasons) or None
