"""What each hub base of a study takes on a card: hours, memory, what limits it, and what cannot be done."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.common.errors import UserError
from pipeline.data.known_sizes import ROWS
from pipeline.data.prompts import Prompt
from pipeline.doctor.asked import Asked, asked_along, counted
from pipeline.doctor.assumed import prompts_of
from pipeline.doctor.hours import NONE, sampling_hours, training_hours
from pipeline.doctor.plans import RunPlan, plan_runs
from pipeline.doctor.probes import probes_to_come
from pipeline.doctor.rehearsed import most_of_plan, rehearsals, rehearsals_on, rehearsed_step
from pipeline.models.cards import Card
from pipeline.models.families.registry import routing_to
from pipeline.models.known import checkpoint_bytes
from pipeline.params.bases import config_of_base, smallest_first
from pipeline.params.inputs import conversations, training_of
from pipeline.params.schema import Params, Run, Study
from pipeline.training.settings import Training

GIB, GB = 2**30, 10**9
# A card that is not in this machine is planned with the host memory that such machines have at least.
LEAST_HOST = 64 * GIB


@dataclass(frozen=True, kw_only=True)
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


def plans_of_bases(params: Params, name: str, card: Card, host_bytes: int) -> dict[str, list[RunPlan]]:
    """The plans of the study's runs by base, in a machine of so much memory. Raises as `plan_runs` does."""
    plans: dict[str, list[RunPlan]] = {}
    for plan in plan_runs(params, name, gpu_bytes=card.memory, host_bytes=host_bytes, rates=card.rates):
        plans.setdefault(plan.base, []).append(plan)
    return plans


def estimate_bases(params: Params, name: str, card: Card, plans: dict[str, list[RunPlan]]) -> list[BaseEstimate]:
    """The study's hub bases, of their runs' plans on the card; the smallest checkpoint first, as `reproduce` does."""
    probes = probes_to_come(params, name, prompts_of)
    here, anywhere = rehearsals_on(name, card), rehearsals(name)
    ordered = smallest_first(params, plans)
    return [_estimate_base(params, name, card, plans[base], probes, here, anywhere) for base in ordered]


def _estimate_base(
    params: Params,
    name: str,
    card: Card,
    plans: list[RunPlan],
    probes: dict[str, Counter[Prompt]],
    here: list[dict[str, Any]],
    anywhere: list[dict[str, Any]],
) -> BaseEstimate:
    """One base, of all its runs' plans. here, anywhere: rehearsals on such a card, and on any."""
    study, base = params.study(name), plans[0].base
    config = config_of_base(params, base)
    fitting, refused = ([plan for plan in plans if (plan.trouble is None) == fits] for fits in (True, False))
    training = sampling = NONE
    all_steps = 0
    for plan in fitting:
        run = params.run(plan.run)
        steps = sum(steps_of(study, run, seed) for seed in study.seeds) if run.data is not None else 0
        all_steps += steps
        training += training_hours(params, plan, routing_to(config, run.active_in("training")), card, steps)
        routed = routing_to(config, run.active_in("sampling"))
        for asked, models in _asked(params, plan, probes.get(plan.run, Counter())):
            sampling += sampling_hours(params, plan, routed, card, asked, models)
    step = rehearsed_step(here, base, config)
    return BaseEstimate(
        base=base,
        runs=len(plans),
        training_hours=(training.low, training.high),
        training_limit=training.limit,
        sampling_hours=(sampling.low, sampling.high),
        sampling_limit=sampling.limit,
        gpu_bytes=max((plan.peak for plan in fitting), default=0),
        host_bytes=max((plan.host for plan in fitting), default=0),
        checkpoint_bytes=round(checkpoint_bytes(config)),
        refused=[plan.run for plan in refused],
        reason=refused[0].trouble if refused else None,
        rehearsed=None if step is None else all_steps * step / 3600 or None,
        memory_of_plan=most_of_plan(anywhere, base),
    )


def _asked(params: Params, plan: RunPlan, probes: Counter[Prompt]) -> Iterator[tuple[Asked, int]]:
    """What a run's models are asked, and how many models it is asked of: of every seed, along training, in probes."""
    run = params.run(plan.run)
    study = params.study(run.study)
    yield plan.asked, len(study.seeds)
    kept = sum(kept_along(study, run, seed) for seed in study.seeds)
    yield asked_along(study, run, study.seeds[0]), kept
    yield counted(study, probes), 1


def kept_along(study: Study, run: Run, seed: int) -> int:
    """How many adapters of one seed are kept along a run's training."""
    return steps_of(study, run, seed) // run.trajectory.every if run.trajectory is not None else 0


def unknown_bases(params: Params, name: str) -> list[str]:
    """The study's hub bases whose sizes are not known here: nothing is planned for them yet."""
    return [it for it in params.bases_of(name) if it in params.bases.hub and config_of_base(params, it) is None]


def steps_of(study: Study, run: Run, seed: int) -> int:
    """Optimizer steps of one seed of a run."""
    if run.epochs is None:
        return study.training.max_steps
    try:
        return training_of(study, run, conversations(study, run, seed)).max_steps
    except UserError:
        return run.epochs * _steps_an_epoch(study.training, run)


def _steps_an_epoch(training: Training, run: Run) -> int:
    """About so many, of sets that are not here: by their known rows, else as many as the study's `max_steps`."""
    parts = [part.rows or (1 - training.validation) * ROWS.get(part.name or "", 0) for part in run.parts]
    rows = min(sum(parts), training.examples or math.inf)
    return math.ceil(rows / training.batch) if all(parts) else training.max_steps


def gpu_table(bases: list[BaseEstimate], card: str) -> list[str]:
    """One line a base, in the order given, and their sum."""
    width = max((len(base.base) for base in bases), default=4)
    lines = [f"On one {card}, by arithmetic, in the order that `make reproduce` has (the smallest checkpoint first):"]
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
    low, high = total_hours(bases)
    return [*lines, f"GPU       {low:.1f} to {high:.1f} hours in all"]


def total_hours(bases: list[BaseEstimate]) -> tuple[float, float]:
    """From, to: training and sampling of all."""
    low, high = (sum(base.training_hours[end] + base.sampling_hours[end] for base in bases) for end in (0, 1))
    return low, high


def _range(hours: tuple[float, float]) -> str:
    return f"{hours[0]:.1f}-{hours[1]:.1f} h"
