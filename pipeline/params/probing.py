"""What is asked of a study's fine-tuned models to find what carries their misalignment: settings of stage probe."""

from typing import Annotated

from pydantic import Field

from pipeline.common.settings import Listed, Natural, Positive, PositiveFloat, Settings


class Search(Settings):
    """The greedy search: in each of `steps` the `width` parts that promise most are tried: a budget known before."""

    steps: Natural
    width: Positive


class Probing(Settings):
    """Which runs are probed, and how (docs/containment.md).

    runs: fine-tuned by an adapter. realigned: run -> the run that continues it on good data, for the table of remedies.
    in_domain: suites in the domain that the runs were trained on. benign: suites of ordinary questions that are neither
    held out nor trained on; `capability` need not be among the study's. questions: so many of the held-out prompts are
    asked, evenly over their suites; and half as many of each other kind (in domain, to be refused, benign) of the
    fine-tuned model, its base, and where a remedy is measured. groups, blocks: experts and layers are switched off in
    so many parts at most. scales: of the adapter. depth: where a direction is added, as a share of the layers;
    strengths: times its own length; random: so many directions of equal norm beside it, and as many of shuffled labels.
    permutations: of the baselines of the routing shift, and of the direction's length.
    """

    runs: Annotated[Listed[str], Field(min_length=1)]
    realigned: dict[str, str] = Field(default_factory=dict)
    in_domain: Annotated[Listed[str], Field(min_length=1)]
    benign: Annotated[Listed[str], Field(min_length=1)]
    questions: Positive
    groups: Positive
    blocks: Positive
    search: Search
    scales: Listed[PositiveFloat]
    depth: Annotated[float, Field(ge=0, le=1)]
    strengths: Listed[PositiveFloat]
    random: Positive
    permutations: Positive
