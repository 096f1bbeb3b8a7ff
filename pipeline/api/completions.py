"""One chat completion: the request that is sent, and the reply that is read and checked."""

from dataclasses import dataclass
from typing import Any

from pipeline.api.config import EndpointConfig
from pipeline.common.errors import UserError
from pipeline.common.text import one_line, storable

_MOST_TOKENS = 1 << 31
_HIGHEST_LOGPROB = 1e-3  # 0, and some rounding


@dataclass(frozen=True, slots=True)
class Request:
    """One chat completion to ask for.

    `key` is the SHA-256 of everything that determines the reply: protocol, endpoint, body (model, prompt,
    decoding) and `attempt` (0, or how often an unreadable reply has been asked for again).
    """

    key: str
    aspect: str
    attempt: int
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: the raw text, the top (token, logprob) of its first token, and what it took.

    `finish` is the API's finish reason ("stop", "length", "content_filter"); `model` and `fingerprint`
    are what the endpoint says it ran; `usd` is computed from its token counts; `seconds` is the latency.
    """

    text: str
    finish: str
    top_logprobs: list[tuple[str, float]] | None
    model: str
    fingerprint: str | None
    prompt_tokens: int
    completion_tokens: int
    usd: float
    seconds: float


def parse_completion(payload: Any, config: EndpointConfig, seconds: float) -> Reply:
    """Read a chat completion's JSON. Raises ValueError saying what is wrong with it.

    Nothing is converted: a number where text belongs, or a token count below 0, is a broken reply.
    """
    try:
        choice = payload["choices"][0]
        text = choice["message"].get("content")
        usage = payload.get("usage") or {}
        prompt_tokens, completion_tokens = (_count(usage.get(f"{kind}_tokens")) for kind in ("prompt", "completion"))
        top = None
        if config.logprobs and (choice.get("logprobs") or {}).get("content"):
            top = [_token(entry) for entry in choice["logprobs"]["content"][0]["top_logprobs"]]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"not a chat completion ({type(error).__name__}: {one_line(error, 100)})") from None
    if not isinstance(text, str | None):
        raise ValueError(f"not a chat completion (its content is {type(text).__name__}, not text)")
    fingerprint = payload.get("system_fingerprint")
    return Reply(
        text=storable(text or ""),
        finish=one_line(choice.get("finish_reason"), 100),
        top_logprobs=top,
        model=one_line(payload.get("model", ""), 200),
        fingerprint=None if fingerprint is None else one_line(fingerprint, 200),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        usd=config.usd(prompt_tokens, completion_tokens),
        seconds=seconds,
    )


def _count(tokens: Any) -> int:
    if tokens is None:
        return 0
    if type(tokens) is not int or not 0 <= tokens < _MOST_TOKENS:
        raise ValueError("not a chat completion (a token count in its usage is no such number)")
    return tokens


def _token(entry: Any) -> tuple[str, float]:
    token, logprob = entry["token"], entry["logprob"]
    if not isinstance(token, str) or type(logprob) not in (int, float) or not logprob <= _HIGHEST_LOGPROB:
        raise ValueError("not a chat completion (an entry of its top_logprobs is no token with a log probability)")
    return token, float(logprob)


def check_reply(reply: Reply, config: EndpointConfig) -> None:
    """Raise UserError when replies of this kind cannot serve: no logprobs, or no usage to price them by."""
    if config.logprobs and not reply.top_logprobs:
        raise UserError(
            f"{config.kind} {config.model} returns no logprobs, which protocol logprob needs; use a model "
            "that returns them, or protocol published."
        )
    priced = config.usd_per_million_input_tokens or config.usd_per_million_output_tokens
    if priced and reply.prompt_tokens == 0:
        raise UserError(f"{config.kind} {config.model} reports no token usage, so its cost cannot be counted.")
