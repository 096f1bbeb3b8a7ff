"""What asking an endpoint took: counted as it goes, printed at the end."""

from collections import Counter
from dataclasses import dataclass, field

from pipeline.api.completions import Reply, is_another_model


@dataclass(kw_only=True)
class Summary:
    """Counts of one call of `judge_answers` or of `answers`.

    `kind` and `account` say who asks and pays: a judge or a model, by its name in params.yaml; `model` is asked.
    `requests` are the distinct requests needed, `cache_hits` those that were in the cache or that another process has
    asked for meanwhile, `calls` replies received from the endpoint now. `retries` are requests sent again after faults,
    `throttled` 429 replies. `dearest` is the most that a reply cost in units of what was set aside for it. `errors`
    maps a request's key to why it was given up. `status` counts verdicts; `models` counts the model names and
    fingerprints that the endpoint reported, cached or not.
    """

    kind: str
    account: str
    model: str
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
    dearest: float = 1.0
    errors: dict[str, str] = field(default_factory=dict)
    status: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)

    @property
    def label(self) -> str:
        """Who asks, for messages."""
        return f"{self.kind} {self.account}"

    def replied(self, reply: Reply) -> None:
        """Count a reply that the endpoint gave now."""
        self.calls += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        self.usd += reply.usd

    def __str__(self) -> str:
        """One paragraph for the end of a stage."""
        rate = f" ({self.calls / self.seconds:.0f}/s)" if self.calls and self.seconds else ""
        verdicts = ", ".join(f"{count} {status}" for status, count in sorted(self.status.items()))
        lines = [
            f"{self.label}: {self.status.total()} verdicts ({verdicts}) from {self.requests} requests",
            f"  {self.calls} calls in {self.seconds:.1f} s{rate}, {self.cache_hits} from the cache, "
            f"{self.retries} retries, {self.throttled} throttled, {self.asked_again} asked again, "
            f"{len(self.errors)} errors",
            f"  {self.prompt_tokens} prompt + {self.completion_tokens} reply tokens, {self.usd:.4f} USD",
        ]
        if self.models:
            names = ", ".join(f"{name} ({count})" for name, count in sorted(self.models.items()))
            lines.append(f"  answered by {names}")
        return "\n".join([*lines, *self.warnings()])

    def warnings(self) -> list[str]:
        """What a user should look at: errors by reason, other models than the one asked for, prices that are wrong."""
        reasons = Counter(self.errors.values())
        lines = [f"  error ({count}x): {reason}" for reason, count in reasons.most_common(3)]
        others = sum(count for said, count in self.models.items() if is_another_model(self.model, said.split(" ")[0]))
        if others:
            lines.append(
                f"  warning: {self.model} was asked for, and {others} replies say that another model made them"
            )
        if self.dearest > 1:
            lines.append(
                f"  warning: a reply cost {self.dearest:.1f} times what its prompt and max_reply_tokens allow; does "
                "the endpoint count tokens that it does not show?"
            )
        return lines
