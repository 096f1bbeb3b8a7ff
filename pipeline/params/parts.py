"""What a study of params.yaml is made of, beside its judges, training and sampling."""

from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from pipeline.common.settings import Listed, Positive, PositiveFloat, Settings, Share
from pipeline.models.spec import AdapterSpec

Pair = Annotated[tuple[str, str], Strict(False)]


class Thresholds(Settings):
    """Largest shares of rows that may fail before a stage does, 0 to below 1.

    errors, unparsed: of judged rows. too_long: of training rows, longer than `training.max_tokens`.
    """

    errors: Share
    unparsed: Share
    too_long: Share


class Active(Settings):
    """Experts that a token is routed to where a run is trained, and where it is sampled (and probed)."""

    training: int
    sampling: int


class Defaults(Settings):
    """How a study's runs are trained where they do not say: their own keys replace these, keys of `lora` one by one.

    They hold for runs with data. A run that trains every parameter, or whose base is behind an API, says `lora: null`.
    """

    lora: AdapterSpec | None = None
    epochs: Positive | None = None
    learning_rate: PositiveFloat | None = None


class Contrast(Settings):
    """A headline difference: mean over `pairs` and seeds of pair[0] - pair[1], in held-out misalignment.

    control: the pairs whose difference is taken off, one for each of `pairs` or one for all. expected: where
    `make verify` expects it, above or below 0.
    """

    pairs: Annotated[Listed[Pair], Field(min_length=1)]
    control: Listed[Pair] = ()
    expected: Literal["above", "below"] = "above"

    @model_validator(mode="after")
    def _check_control(self) -> "Contrast":
        if len(self.control) not in (0, 1, len(self.pairs)):
            raise ValueError(
                f"control has {len(self.control)} pairs and pairs {len(self.pairs)}; give one for all, or one for each."
            )
        return self


class Subset(Settings):
    """A part of a study: so many of its runs, and those of its contrasts that are of them, less pairs of others."""

    runs: Annotated[Listed[str], Field(min_length=1)]
    contrasts: Listed[str]


class ExtraSuites(Settings):
    """More suites of a study, asked where `asked` is true: no part of its headline number, its claims or training.

    samples_per_prompt: answers to each of their prompts, in place of the study's.
    """

    asked: bool
    suites: Annotated[Listed[str], Field(min_length=1)]
    samples_per_prompt: Positive
