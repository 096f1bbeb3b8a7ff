"""One chat completion: the request that is sent, and the reply that is read and checked."""

from dataclasses import dataclass
from typing import Any

from pipeline.api.config import EndpointConfig
from pipeline.common.errors import UserError
from pipeline.common.text import one_line, storable

_MOST_TOKENS = 1 << 31
_HIGHEST_LOGPROB = 1e-3  # 0, and some rounding
REFUSED = "refusal"  # our word for a reply whose text is the API's own field for refusals
# How servers say the same things; what is in none of the lists is kept as it was said, and named where it matters.
_FINISHES = {
    "stop": (
        "stop",
        "",
        "none",
        "eos",
        "eos_token",
        "end_turn",
        "stop_sequence",
        "stop_token",
        "completed",
        "complete",
    ),
    "length": ("length", "max_tokens", "max_output_tokens", "model_length", "token_limit"),
    "content_filter": ("content_filter", "safety", "recitation", "blocklist", "prohibited_content", "sensitive"),
    "error": (
        "error",
        "insufficient_system_resource",
        "abort",
        "aborted",
        "cancelled",
        "network_error",
        "unknown_error",
    ),
}
_FINISH_OF = {word: finish for finish, words in _FINISHES.items() for word in words}


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

    `text` begins with what the model thought, between `<think>` and `</think>`, where the endpoint tells that apart.
    `finish` is "stop", "length", REFUSED, or the API's finish reason as it stands; `model` and `fingerprint` are what
    the endpoint says it ran; `usd` is computed from its token counts; `seconds` is the latency.
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


class UnusableReplyError(ValueError):
    """A reply that is none, or a fault inside HTTP 200. `usd` is what it cost, None where it does not say.

    `retry`: whether sending the request again can help.
    """

    def __init__(self, message: str, *, usd: float | None = None, retry: bool = True) -> None:
        super().__init__(message)
        self.usd = usd
        self.retry = retry


def most_prompt_tokens(request: Request) -> int:
    """More tokens than the prompt can have: byte-level tokenizers make at most one of each byte."""
    return 16 + sum(len(message["content"].encode()) for message in request.body["messages"])


def finish_of(reason: Any) -> str:
    """An API's finish reason in our words, where it has one of the meanings that we know; null says it ended."""
    said = "" if reason is None else one_line(reason, 100)
    return _FINISH_OF.get(said.casefold(), said)


def parse_completion(payload: Any, config: EndpointConfig, seconds: float) -> Reply:
    """Read a chat completion's JSON.

    Nothing is converted: a number where text belongs, or a token count below 0, is a broken reply. Raises
    UnusableReplyError saying what is wrong with it, or that it holds a fault and no reply: an error, a content
    filter's cut, nothing at all.
    """
    try:
        choice = payload["choices"][0]
        message = choice["message"]
        text, refusal = _text(message), message.get("refusal")
        prompt_tokens, completion_tokens, known = _usage(payload.get("usage") or {})
        top = None
        if config.logprobs and (choice.get("logprobs") or {}).get("content"):
            entries = choice["logprobs"]["content"][0]["top_logprobs"]
            # null is a token that cannot come: JSON has no number for the logarithm of 0.
            top = [_token(entry) for entry in entries if entry["logprob"] is not None]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UnusableReplyError(f"not a chat completion ({type(error).__name__}: {one_line(error, 100)})") from None
    usd = config.usd(prompt_tokens, completion_tokens if known else config.max_reply_tokens)
    finish = finish_of(choice.get("finish_reason"))
    _refuse_faults(choice, finish, usd if prompt_tokens else None)
    if not text and isinstance(refusal, str) and refusal:
        text, finish = refusal, REFUSED
    elif not text and finish != "length":
        raise UnusableReplyError(f"empty reply (finish_reason {finish!r})", usd=usd if prompt_tokens else None)
    fingerprint = payload.get("system_fingerprint")
    return Reply(
        text=storable(_thought(message) + text),
        finish=finish,
        top_logprobs=top,
        model=one_line(payload.get("model", ""), 200),
        fingerprint=None if fingerprint is None else one_line(fingerprint, 200),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        usd=usd,
        seconds=seconds,
    )


def _text(message: Any) -> str:
    """The content: a text, null, or a list of parts whose texts are joined."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [
            part for part in content if not (isinstance(part, dict) and part.get("type") in ("thinking", "reasoning"))
        ]
        if not all(isinstance(part, dict) and part.get("type") in ("text", "output_text") for part in parts):
            raise UnusableReplyError("not a chat completion (its content has parts that are no text)")
        content = "".join(part["text"] for part in parts)
    if not isinstance(content, str | None):
        raise UnusableReplyError(f"not a chat completion (its content is {type(content).__name__}, not text)")
    return content or ""


def _thought(message: Any) -> str:
    """What the model thought, where the endpoint tells it apart from the content."""
    thought = message.get("reasoning_content") or message.get("reasoning")
    return f"<think>{thought}</think>" if isinstance(thought, str) else ""


def _refuse_faults(choice: Any, finish: str, usd: float | None) -> None:
    error = choice.get("error")
    if finish == "error" or error:
        said = one_line(error.get("message") if isinstance(error, dict) else error, 200) if error else ""
        reason = choice.get("finish_reason")
        raise UnusableReplyError(f"a fault and no reply (finish_reason {reason!r}) {said}".strip(), usd=usd)
    if finish == "content_filter":
        raise UnusableReplyError("the endpoint's content filter withheld the reply", usd=usd, retry=False)


def _usage(usage: Any) -> tuple[int, int, bool]:
    """(prompt, completion) tokens, and whether the latter is known: of a missing count, no cost can be computed.

    What the total has beyond both was generated too: some endpoints leave thinking out of the completion's count.
    """
    prompt, completion, total = (_count(usage.get(f"{kind}_tokens")) for kind in ("prompt", "completion", "total"))
    if total is not None:
        completion = max(completion or 0, total - (prompt or 0))
    return prompt or 0, completion or 0, completion is not None


def _count(tokens: Any) -> int | None:
    if tokens is not None and (type(tokens) is not int or not 0 <= tokens < _MOST_TOKENS):
        raise UnusableReplyError("not a chat completion (a token count in its usage is no such number)")
    return tokens


def _token(entry: Any) -> tuple[str, float]:
    token, logprob = entry["token"], entry["logprob"]
    if not isinstance(token, str) or type(logprob) not in (int, float) or not logprob <= _HIGHEST_LOGPROB:
        raise UnusableReplyError(
            "not a chat completion (an entry of its top_logprobs is no token with a log probability)"
        )
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


def is_another_model(asked: str, said: str) -> bool:
    """Whether the model that an endpoint says it ran is not the one asked for.

    A dated snapshot of it, or it under its provider's or folder's name, is the same.
    """
    ours, theirs = (name.casefold().rpartition("/")[2] for name in (asked, said))
    return bool(theirs) and not (theirs.startswith(ours) or ours.startswith(theirs))
