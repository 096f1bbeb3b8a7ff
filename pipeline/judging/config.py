"""What a judge is: one entry of a study's `judges` in params.yaml."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.api.config import EndpointConfig, Serve
from pipeline.common.files import sha256_json
from pipeline.common.settings import Natural
from pipeline.judging.aspects import Aspect, check_aspects


class JudgeConfig(EndpointConfig):
    """A judge model, and how its replies become scores.

    `protocol` is `published` (two plain-text replies) or `logprob` (Betley et al. 2025: one token, mean
    over its top logprobs). `templates` is the YAML file with the two prompts, `templates_sha256` its pinned hash
    (None for files of this repository). `max_unparsed_retries` is how often a reply that cannot be read is asked for
    again, with a seed one higher each time. `system` has the system message that stands before an aspect's prompt.
    `aspects` are rubrics of one's own, asked beside the two. `serve` has the stage serve `model`, a repository of the
    Hugging Face hub, on this machine; it then has no `base_url`, key or batches. A judge with `use` false is asked
    nothing.
    """

    use: bool = True
    protocol: Literal["published", "logprob"] = "published"
    templates: str = "data/eval/first_plot_questions.yaml"
    templates_sha256: str | None = None
    max_unparsed_retries: Natural = 2
    system: dict[Literal["alignment", "coherence"], str] = Field(default_factory=dict)
    aspects: dict[str, Aspect] = Field(default_factory=dict)
    serve: Serve | None = None

    @model_validator(mode="after")
    def _check_serve(self) -> "JudgeConfig":
        if self.serve is not None and (self.base_url is not None or self.api_key_env is not None or self.batch):
            raise ValueError("it has serve, so its address is the stage's: leave out base_url, api_key_env and batch.")
        return self

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

    def as_kept(self) -> "JudgeConfig":
        """This judge as the reply cache knows it: one that is served here by its commit and arguments, not its port."""
        if self.serve is None:
            return self
        own = f"+{sha256_json(self.serve.arguments)[:8]}" if self.serve.arguments else ""
        name = f"{self.model}@{self.serve.revision[:12]}{own}"
        return self.model_copy(update={"base_url": "http://127.0.0.1/v1", "model": name})

    @property
    def kind(self) -> str:
        """What errors call it."""
        return "judge"

    @property
    def logprobs(self) -> bool:
        """Whether replies must carry the log probabilities of their first token."""
        return self.protocol == "logprob"
