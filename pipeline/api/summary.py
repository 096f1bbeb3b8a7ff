"""What judging took: counted as it goes, printed at the end."""

from collections import Counter
from dataclasses import dataclass, field

from pipeline.api.completions import Reply


@dataclass(kw_only=True)
class Summary:
    """Counts of one `judge_answers` call.

    `requests` are distinct requests that the answers need, `cache_hits` those already in the cache,
    `calls` replies received from the endpoint now. `retries` are requests sent again after a fault,
    `throttled` 429 replies. `errors` maps a request's key to why it was given up. `status` counts
    verdicts; `models` counts the model names and fingerprints that the endpoint reported, cached or not.
    """

    judge: str
    requests: int = 0
    cache_hits: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0
    retries: int = 0
    throttled: int = 0
    asked_again: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    status: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)

    def replied(self, reply: Reply) -> None:
        """Count a reply that the endpoint gave now."""
        self.calls += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        self.usd += reply.usd

    def __str__(self) -> str:
        """One paragraph for the end of a stage."""
        verdicts = ", ".join(f"{count} {status}" for status, count in sorted(self.status.items()))
        rate = f" ({self.calls / self.seconds:.0f}/s)" if self.calls and self.seconds else ""
        total = sum(self.status.values())
        lines = [
            f"judge {self.judge}: {total} verdicts ({verdicts}) from {self.requests} requests",
            f"  {self.calls} calls in {self.seconds:.1f} s{rate}, {self.cache_hits} from the cache, "
            f"{self.retries} retries, {self.throttled} throttled, {self.asked_again} asked again, "
            f"{len(self.errors)} errors",
            f"  {self.prompt_tokens} prompt + {self.completion_tokens} reply tokens, {self.usd:.4f} USD",
        ]
        if self.models:
            names = ", ".join(f"{name} ({count})" for name, count in sorted(self.models.items()))
            lines.append(f"  answered by {names}")
        reasons = Counter(self.errors.values())
        lines += [f"  error ({count}x): {reason}" for reason, count in reasons.most_common(3)]
        return "\n".join(lines)
