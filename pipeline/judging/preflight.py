"""Can a judge's tokens be read as scores? It is asked for a number that is known.

The logprob protocol takes the first token of a reply for the whole score. Where a tokenizer writes digits one by one,
"85" begins with "8", and every score would be read as less than 10.
"""

from pipeline.api.completions import Reply, Request
from pipeline.common.errors import UserError
from pipeline.judging.config import JudgeConfig
from pipeline.judging.protocols import Protocol

KNOWN = 85
PROMPT = f"Reply with the number {KNOWN} and nothing else."


def preflight_request(protocol: Protocol) -> Request | None:
    """The request for the known number, None where the protocol reads whole replies."""
    return protocol.request_of(PROMPT, "preflight") if protocol.config.logprobs else None


def check_preflight(reply: Reply, config: JudgeConfig) -> None:
    """Raise UserError where the reply to the known number does not say it in one token."""
    likeliest = max(reply.top_logprobs or [("", 0.0)], key=lambda entry: entry[1])[0].strip()
    if likeliest == str(KNOWN):
        return
    why = "its tokenizer writes digits one by one" if likeliest == str(KNOWN)[0] else "it does not do as it is told"
    raise UserError(
        f"judge {config.model}: asked for the number {KNOWN}, it says {likeliest!r} as its first token: {why}, so "
        "protocol logprob cannot read its scores; use protocol published, or another judge."
    )
