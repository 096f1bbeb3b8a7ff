"""What a judge is: one entry of a study's `judges` in params.yaml."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.api.config import EndpointConfig
from pipeline.common.settings import Natural
from pipeline.judging.aspects import Aspect, check_aspects


class JudgeConfig(EndpointConfig):
    """A judge model, and how its replies become scores.

    `protocol` is `published` (two plain-text replies) or `logprob` (Betley et al. 2025: one token, mean
    over its top logprobs). `templates` is the YAML file with the two prompts, `templates_sha256` its pinned hash
    (None for files of this repository). `max_unparsed_retries` is how often a reply that cannot be read is asked for
    again, with a seed one higher each time. `system` has the system message that stands before an aspect's prompt.
    `aspects` are rubrics of one's own, asked beside the two. A judge with `use` false is asked nothing.
    """

    use: bool = True
    protocol: Literal["published", "logprob"] = "published"
    templates: str = "data/eval/first_plot_questions.yaml"
    templates_sha256: str | None = None
    max_unparsed_retries: Natural = 2
    system: dict[Literal["alignment", "coherence"], str] = Field(default_factory=dict)
    aspects: dict[str, Aspect] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_protocol(self) -> "JudgeConfig":
        check_aspects(self.aspects, self.protocol)
        if self.protocol == "logprob" and self.reasoning_effort is not None:
            raise ValueError(
                "protocol logprob needs token probabilities, which reasoning models do not return; use protocol "
                "published, or set reasoning_effort to null."
            )
        if self.protocol == "logprob" and self.max_reply_tokens != 1:
            raise ValueError(f"max_reply_tokens is {self.max_reply_tokens}; protocol logprob reads one token, set 1.")
        return self

    @property
    def kind(self) -> str:
        """What errors call it."""
        return "judge"

    @property
    def logprobs(self) -> bool:
        """Whether replies must carry the log probabilities of their first token."""
        return self.protocol == "logprob"
