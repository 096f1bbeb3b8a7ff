"""What judging will take, before anything is spent: requests, tokens, money."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.api.completions import Reply, most_prompt_tokens
from pipeline.api.replies import ReplyCache
from pipeline.common.rows import Answer
from pipeline.judging.config import JudgeConfig
from pipeline.judging.protocols import load_protocol

BYTES_PER_TOKEN = 4.0  # of English text, by OpenAI's rule of thumb
_MEASURED_FROM = 20


@dataclass(frozen=True, kw_only=True)
class JudgeEstimate:
    """`requests` still to be asked (`cached` are known), their expected tokens and cost in US dollars.

    `spent_usd` is what the judge has cost already, over all studies that share the reply cache.
    `most_usd` cannot be passed by answers that are there, without asking again after unreadable replies: a
    token a byte, and every reply at its limit. `basis` says in words where the expected counts come from.
    """

    judge: str
    requests: int
    cached: int
    prompt_tokens: int
    reply_tokens: int
    usd: float
    most_usd: float
    spent_usd: float
    basis: str


def estimate_judging(
    judge_name: str,
    config: JudgeConfig,
    cache_path: Path,
    answers: Iterable[Answer],
    unanswered: Mapping[str, int],
    answer_tokens: int,
) -> JudgeEstimate:
    """Estimate for answers that are there, from their real prompts, less what the cache knows, and for those to come.

    `unanswered` says how many answers to each question are to come; they are taken as distinct and as
    `answer_tokens` tokens long. With 20 or more cached replies, tokens a byte and tokens a reply are measured
    on those. Raises UserError when the judge's prompts or the cache cannot be read.
    """
    protocol = load_protocol(config)
    sizes: dict[str, int] = {}
    for answer in answers:
        for aspect in protocol.aspects:
            request = protocol.request(answer, aspect)
            sizes[request.key] = most_prompt_tokens(request)
    known: dict[str, Reply] = {}
    spent_usd = 0.0
    if cache_path.exists():
        with ReplyCache(cache_path) as cache:
            known, spent_usd = cache.get(sizes), cache.spent_usd(judge_name)
    requests = len(sizes) - len(known)
    size = float(sum(sizes[key] for key in sizes.keys() - known.keys()))
    for question, count in unanswered.items():
        for aspect in protocol.aspects:
            asked = most_prompt_tokens(protocol.request(_no_answer(question), aspect))
            requests += count
            size += count * (asked + answer_tokens * BYTES_PER_TOKEN)
    bytes_per_token, reply_tokens = BYTES_PER_TOKEN, float(config.max_reply_tokens)
    basis = f"{BYTES_PER_TOKEN:g} bytes a token, replies at their limit of {config.max_reply_tokens} tokens"
    if len(known) >= _MEASURED_FROM:
        seen = sum(reply.prompt_tokens for reply in known.values())
        bytes_per_token = sum(sizes[key] for key in known) / max(seen, 1)
        reply_tokens = sum(reply.completion_tokens for reply in known.values()) / len(known)
        basis = f"measured on {len(known)} cached replies"
    if unanswered:
        basis += f", answers to come at their limit of {answer_tokens} tokens"
    prompt_tokens, replies = round(size / bytes_per_token), round(requests * reply_tokens)
    return JudgeEstimate(
        judge=judge_name,
        requests=requests,
        cached=len(known),
        prompt_tokens=prompt_tokens,
        reply_tokens=replies,
        usd=config.usd(prompt_tokens, replies),
        most_usd=config.usd(round(size), requests * config.max_reply_tokens),
        spent_usd=spent_usd,
        basis=basis,
    )


def _no_answer(question: str) -> Answer:
    return Answer(
        run="", seed=0, suite="", prompt_id="", sample=0, question=question, answer="",
        thinking="", finish="stop", prompt_tokens=0, answer_tokens=0,
    )  # fmt: skip
