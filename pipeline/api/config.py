"""A model behind an OpenAI-compatible endpoint, and one that can be fine-tuned there (`bases.api` in params.yaml)."""

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator

from pipeline.common.errors import UserError
from pipeline.common.files import read_json
from pipeline.common.settings import Commit, Natural, NaturalFloat, Positive, PositiveFloat, Settings

OPENAI = "https://api.openai.com/v1"
BATCH_PRICE = 0.5  # OpenAI's Batch API charges half of the ordinary price.

ADAPTER = "adapter.json"  # what stands for an adapter: the record of a fine-tuning job, the tuned model's name in it


def _check_url(url: str) -> str:
    """The URL as it is. Raises ValueError, which does not quote what may hold a secret."""
    if "@" in url or "?" in url or "#" in url:
        raise ValueError(
            "it carries a user name, password or query; put the key in an environment variable and name it in "
            "api_key_env."
        )
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or not url.isprintable() or " " in url:
        raise ValueError(f"it is {url!r}, expected http(s)://host[:port]/v1.")
    return url


# What the stage itself tells `vllm serve`, and what would run a repository's own code.
_OURS = (
    "host", "port", "uds", "config", "model", "revision", "tokenizer-revision", "served-model-name", "api-key",
    "generation-config", "trust-remote-code", "code-revision",
)  # fmt: skip
BaseUrl = Annotated[str, AfterValidator(_check_url)]
ModelName = Annotated[str, Field(min_length=1)]


class Serve(Settings):
    """A model of the Hugging Face hub that the stage serves on this machine, by `vllm serve`, while it asks it.

    `revision` is its commit in full. `arguments` are vLLM's own, without dashes: {max-model-len: 8192}; true and false
    are for flags (`--flag`, `--no-flag`). `start_s` is how long it may take to be ready, fetching the model included.
    """

    revision: Commit
    arguments: dict[str, str | int | float | bool] = Field(default_factory=dict)
    start_s: PositiveFloat = 3600.0

    @field_validator("arguments")
    @classmethod
    def _check_arguments(cls, arguments: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
        for name in arguments:
            if name.replace("_", "-") in _OURS or not re.fullmatch("[a-z][a-z0-9_-]*", name):
                raise ValueError(f"{name!r} is set by the stage, or no argument of `vllm serve`; leave it out.")
        return arguments


class EndpointConfig(Settings):
    """One model behind an OpenAI-compatible endpoint: how it is asked, and what it may cost.

    `base_url` is the endpoint, None for OpenAI itself. `api_key_env` names the environment variable that holds the
    key; None where no key is needed. `temperature` and `seed` are sent unless None. `reasoning_effort` marks a
    reasoning model: it is sent with `max_completion_tokens` instead of `max_tokens`, and such a model gives no
    logprobs.

    `concurrency` is the most requests in flight, `timeout_s` the seconds one request may take, `max_retries` how
    often a request that failed on the way is sent again. Prices are in US dollars a million tokens, 0 where nothing is
    paid. `budget_usd` caps what may be spent in all, over every run, at the same time or not, that shares the reply
    cache. `batch` sends everything through OpenAI's Batch API (half the price, up to 24 hours).
    """

    model: ModelName
    base_url: BaseUrl | None = None
    api_key_env: str | None = None
    temperature: NaturalFloat | None = None
    seed: int | None = None
    max_reply_tokens: Positive = 10
    reasoning_effort: str | None = None
    concurrency: Positive = 32
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    timeout_s: PositiveFloat = 60.0
    max_retries: Natural = 8
    usd_per_million_input_tokens: NaturalFloat = 0.0
    usd_per_million_output_tokens: NaturalFloat = 0.0
    budget_usd: NaturalFloat | None = None
    batch: bool = False

    @property
    def kind(self) -> str:
        """What errors call it."""
        return "model"

    @property
    def logprobs(self) -> bool:
        """Whether replies must carry the log probabilities of their first token."""
        return False

    @property
    def endpoint(self) -> str:
        """Where the model is served: the same name elsewhere may be another model."""
        return (self.base_url or OPENAI).rstrip("/")

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What a request of this many tokens costs, in US dollars."""
        per_million = (
            prompt_tokens * self.usd_per_million_input_tokens + completion_tokens * self.usd_per_million_output_tokens
        )
        return per_million / 1e6 * (BATCH_PRICE if self.batch else 1.0)


class ApiBase(Settings):
    """A model that OpenAI, or a server that speaks its API, fine-tunes and answers with.

    `model` is a dated snapshot. `base_url`, `api_key_env`, `concurrency`, `requests_per_minute`, `tokens_per_minute`,
    `timeout_s`, `max_retries` and `batch` are as a judge has them. `training_batch` and `learning_rate_multiplier` are
    hyper-parameters of the API; epochs are the run's. Prices are in US dollars a million tokens; `tuned_` ones are of
    the models fine-tuned from it. `training_budget_usd` and `budget_usd` cap what fine-tuning and sampling may cost in
    all, over every run that shares the cache folder. What is trained, and where, is not told: such a model has no
    known experts.
    """

    model: ModelName
    base_url: BaseUrl | None = None
    api_key_env: str | None = None
    training_batch: Positive
    learning_rate_multiplier: PositiveFloat
    usd_per_million_training_tokens: NaturalFloat
    training_budget_usd: NaturalFloat | None = None
    concurrency: Positive = 32
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    timeout_s: PositiveFloat = 120.0
    max_retries: Natural = 8
    usd_per_million_input_tokens: NaturalFloat
    usd_per_million_output_tokens: NaturalFloat
    tuned_usd_per_million_input_tokens: NaturalFloat
    tuned_usd_per_million_output_tokens: NaturalFloat
    budget_usd: NaturalFloat | None = None
    batch: bool = False

    @property
    def experts(self) -> int:
        """None that are known."""
        return 0

    @property
    def active(self) -> int:
        """None that are known."""
        return 0

    def client(self, tuned: str | None, *, max_reply_tokens: int) -> EndpointConfig:
        """What the client needs to ask the model as it is, or `tuned`, one fine-tuned from it."""
        prices = (self.usd_per_million_input_tokens, self.usd_per_million_output_tokens)
        if tuned is not None:
            prices = (self.tuned_usd_per_million_input_tokens, self.tuned_usd_per_million_output_tokens)
        return EndpointConfig(
            model=tuned or self.model,
            base_url=self.base_url,
            api_key_env=self.api_key_env,
            temperature=None,
            seed=None,
            max_reply_tokens=max_reply_tokens,
            reasoning_effort=None,
            concurrency=self.concurrency,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            timeout_s=self.timeout_s,
            max_retries=self.max_retries,
            usd_per_million_input_tokens=prices[0],
            usd_per_million_output_tokens=prices[1],
            budget_usd=self.budget_usd,
            batch=self.batch,
        )


def tuned_model(folder: Path) -> str:
    """The name of the model that a run's stage left in `folder`. Raises UserError when it left none."""
    record = read_json(folder / ADAPTER)
    name = record.get("model") if isinstance(record, dict) else None
    if not isinstance(name, str) or not name:
        raise UserError(f"{folder / ADAPTER} names no model; run the train stage again.")
    return name
