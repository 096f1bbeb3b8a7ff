"""What a judge is: one entry of a study's `judges` in params.yaml."""

from dataclasses import dataclass
from typing import Literal

from pipeline.api.config import EndpointConfig
from pipeline.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(EndpointConfig):
    """A judge model, and how its replies become scores.

    `protocol` is `published` (two plain-text replies) or `logprob` (Betley et al. 2025: one token, mean
    over its top logprobs). `templates` is the YAML file with the two prompts, `templates_sha256` its pinned hash
    (None for files of this repository). `max_unparsed_retries` is how often a reply that cannot be read is asked for
    again, with a seed one higher each time.
    """

    protocol: Literal["published", "logprob"]
    templates: str
    templates_sha256: str | None
    max_unparsed_retries: int

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the field. Raises UserError."""
        super().__post_init__()
        self._at_least(0, "max_unparsed_retries")
        if self.protocol == "logprob" and self.reasoning_effort is not None:
            raise UserError(
                f"judge {self.model}: protocol logprob needs token probabilities, which reasoning models do "
                "not return; use protocol published, or set reasoning_effort to null."
            )
        if self.protocol == "logprob" and self.max_reply_tokens != 1:
            raise UserError(
                f"judge {self.model}: max_reply_tokens is {self.max_reply_tokens}; protocol logprob "
                "reads one token, set 1."
            )

    @property
    def kind(self) -> str:
        """What errors call it."""
        return "judge"

    @property
    def logprobs(self) -> bool:
        """Whether replies must carry the log probabilities of their first token."""
        return self.protocol == "logprob"
