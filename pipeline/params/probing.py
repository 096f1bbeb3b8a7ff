"""What is asked of a study's fine-tuned models to find what carries their misalignment: settings of stage probe."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.common.errors import UserError
from pipeline.common.settings import Listed, Natural, Positive, PositiveFloat, Settings

if TYPE_CHECKING:
    from pipeline.params.schema import Params


class Search(Settings):
    """The greedy search: in each of `steps`, the `width` units that promise most are tried; steps x width is its budget."""

    steps: Natural
    width: Positive


class Probing(Settings):
    """Which runs are probed, and how (docs/containment.md).

    runs: fine-tuned by an adapter. realigned: run -> the run that continues it on good data, for the table of remedies.
    in_domain: suites in the domain that the runs were trained on. questions: so many of the held-out prompts are asked,
    evenly over their suites; and so many in-domain and refused ones where a remedy is measured. groups, blocks: experts
    and layers are switched off in so many parts at most. scales: of the adapter. depth: where a direction is added, as a
    share of the layers; strengths: times its own length; random: directions of equal norm beside it. permutations: of
    the baseline of the routing shift.
    """

    runs: Annotated[Listed[str], Field(min_length=1)]
    realigned: dict[str, str] = Field(default_factory=dict)
    in_domain: Annotated[Listed[str], Field(min_length=1)]
    questions: Positive
    groups: Positive
    blocks: Positive
    search: Search
    scales: Listed[PositiveFloat]
    depth: Annotated[float, Field(ge=0, le=1)]
    strengths: Listed[PositiveFloat]
    random: Positive
    permutations: Positive


def check_probing(study: str, params: "Params", where: str) -> None:
    """Raise UserError, naming the key, where the study's probes name what is not there or cannot be probed."""
    entry = params.studies[study]
    if entry.probing is None:
        return
    runs = params.runs_of(study)
    for name in (*entry.probing.runs, *entry.probing.realigned.values()):
        if name not in runs:
            raise UserError(f"{where} names {name}, which is no run of study {study}; there are {', '.join(runs)}.")
    for name in entry.probing.runs:
        lora = runs[name].lora
        if lora is None or params.base_of(name) in params.bases.api:
            raise UserError(f"{where}.runs has {name}, which has no adapter here: parts of one are switched off.")
        if lora.router != "frozen":
            raise UserError(
                f"{where}.runs has {name}, whose router was trained too; probes know low-rank deltas alone."
            )
    for name, other in entry.probing.realigned.items():
        if name not in entry.probing.runs or runs[other].continues != name:
            raise UserError(f"{where}.realigned has {name}: {other}, expected a probed run and one that continues it.")
    for suite in entry.probing.in_domain:
        if suite not in entry.suites:
            raise UserError(
                f"{where}.in_domain has {suite}, which is no suite of the study ({', '.join(entry.suites)})."
            )
