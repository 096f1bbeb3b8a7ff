"""What each hub base of a study takes on a card: hours, memory, what limits it, and what cannot be done."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.common.errors import UserError
from pipeline.common.machine import memory_bytes
from pipeline.doctor.cards import Card
from pipeline.doctor.hours import NONE, sampling_hours, training_hours
from pipeline.doctor.plans import plan_runs
from pipeline.doctor.rehearsed import most_of_plan, rehearsals, rehearsals_on, rehearsed_step
from pipeline.models.families.registry import routing_to
from pipeline.models.known import checkpoint_bytes, config_of
from pipeline.params.inputs import conversations, training_of
from pipeline.params.schema import Params, Run, Study

GIB, GB = 2**30, 10**9
# A card that is not in this machine is planned with the host memory that such machines have at least.
LEAST_HOST = 64 * GIB


@dataclass(frozen=True)
class BaseEstimate:
    """One base: its runs, hours of training and of sampling (from, to), what limits them, and what it needs.

    refused: runs that no plan fits, with the reason of the first. rehearsed: hours of training by a rehearsal on this
    card, memory_of_plan: the largest share of the memory predicted that one took, on any machine, at true width; None
    where there was none.
    """

    base: str
    runs: int
    training_hours: tuple[float, float]
    training_limit: str
    sampling_hours: tuple[float, float]
    sampling_limit: str
    gpu_bytes: int
    host_bytes: int
    checkpoint_bytes: int
    refused: list[str]
    reason: str | None
    rehearsed: float | None
    memory_of_plan: float | None


def estimate_bases(
    params: Params,
    name: str,
    card: Card,
    answers: int,
    prompt_tokens: int,
    probes: Mapping[str, tuple[int, int]],
) -> list[BaseEstimate]:
    """The study's hub bases, the cheapest first; answers and prompt tokens are those of one run's suites, all seeds.

    probes: of a run that is probed, the answers and prompt tokens of that, which are sampling too.
    """
    study, found = params.study(name), []
    plans = list(plan_runs(params, name, gpu_bytes=card.memory, host_bytes=max(memory_bytes(), LEAST_HOST)))
    here, anywhere = rehearsals_on(name, card), rehearsals(name)
    for base in dict.fromkeys(plan.base for plan in plans):
        hub = params.bases.hub[base]
        config = config_of(hub.repository, hub.revision)
        mine = [plan for plan in plans if plan.base == base]
        training = sampling = NONE
        rehearsed: float | None = 0.0
        for plan in (plan for plan in mine if plan.trouble is None):
            run = params.run(plan.run)
            steps = sum(steps_of(study, run, seed) for seed in study.seeds) if run.data is not None else 0
            training += training_hours(params, plan, routing_to(config, run.active_in("training")), card, steps)
            times, routed = 1 + len(run.tags), routing_to(config, run.active_in("sampling"))
            sampling += sampling_hours(params, plan, routed, card, times * answers, times * prompt_tokens)
            sampling += sampling_hours(params, plan, routed, card, *probes.get(plan.run, (0, 0)))
            if run.data is not None and rehearsed is not None:
                step = rehearsed_step(here, base, config)
                rehearsed = None if step is None else rehearsed + steps * step / 3600
        fitting = [plan for plan in mine if plan.trouble is None]
        refused = [plan for plan in mine if plan.trouble is not None]
        found.append(
            BaseEstimate(
                base, len(mine), (training.low, training.high), training.limit, (sampling.low, sampling.high),
                sampling.limit, max((plan.peak for plan in fitting), default=0),
                max((plan.host for plan in fitting), default=0), round(checkpoint_bytes(config)),
                [plan.run for plan in refused], refused[0].trouble if refused else None, rehearsed or None,
                most_of_plan(anywhere, base),
            )
        )  # fmt: skip
    return sorted(found, key=lambda base: base.training_hours[1] + base.sampling_hours[1])


def unknown_bases(params: Params, name: str) -> list[str]:
    """The study's hub bases whose sizes are not known here: nothing is planned for them yet."""
    hub = params.bases.hub
    return [it for it in params.bases_of(name) if it in hub and config_of(hub[it].repository, hub[it].revision) is None]


def steps_of(study: Study, run: Run, seed: int) -> int:
    """Optimizer steps of one seed of a run."""
    if run.epochs is None:
        return study.training.max_steps
    try:
        return training_of(study, run, conversations(study, run, seed)).max_steps
    except UserError:
        return run.epochs * study.training.max_steps  # about an epoch of the sets that are not here


def gpu_table(bases: list[BaseEstimate], card: str) -> list[str]:
    """One line a base, the cheapest first, and their sum."""
    width = max((len(base.base) for base in bases), default=4)
    lines = [f"On one {card}, by arithmetic, the cheapest first:"]
    for base in bases:
        lines.append(
            f"  {base.base:<{width}}  {base.runs:>2} runs   training {_range(base.training_hours)} "
            f"({base.training_limit})   sampling {_range(base.sampling_hours)} ({base.sampling_limit})   "
            f"{base.gpu_bytes / GIB:.0f} GiB of GPU, {base.host_bytes / GIB:.0f} of host memory   "
            f"weights {base.checkpoint_bytes / GB:.0f} GB"
        )
        if base.rehearsed is not None:
            lines.append(
                f"  {'':<{width}}  a rehearsal on this card says {base.rehearsed:.1f} h of training "
                "(by steps of few, short rows, each with a checkpoint)"
            )
        if base.memory_of_plan is not None:
            lines.append(
                f"  {'':<{width}}  rehearsed at true width: at most {base.memory_of_plan:.2f} of the memory predicted "
                "(without a GPU a dequantised layer is held twice, which takes more)"
            )
        if base.reason is not None:
            reason = base.reason.partition(":")[0]
            lines.append(f"  {'':<{width}}  not on this card: {', '.join(base.refused)} ({reason})")
    low, high = (sum(base.training_hours[end] + base.sampling_hours[end] for base in bases) for end in (0, 1))
    return [*lines, f"GPU       {low:.1f} to {high:.1f} hours in all"]


def _range(hours: tuple[float, float]) -> str:
    return f"{hours[0]:.1f}-{hours[1]:.1f} h"
