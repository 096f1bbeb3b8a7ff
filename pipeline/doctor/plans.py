"""Where a study's runs fit: plans of training and of sampling, run by run, for a card that may not be here."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.common.errors import UserError
from pipeline.doctor.asked import Asked, asked_of
from pipeline.models.cards import SLOW, Rates
from pipeline.models.families.registry import routing_to
from pipeline.models.sizes import HOST_SHARE
from pipeline.models.spec import AdapterSpec
from pipeline.params.bases import config_of_base
from pipeline.params.inputs import suites_asked
from pipeline.params.schema import Params
from pipeline.sampling.plan import SamplingPlan, plan_sampling
from pipeline.training.memory import MemoryPlan, plan_memory


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """How one run is trained and sampled; None where it is not, and `trouble` where it cannot be, with the numbers.

    asked: what one seed's model is asked, adapters along training aside.
    """

    run: str
    base: str
    asked: Asked
    training: MemoryPlan | None = None
    sampling: SamplingPlan | None = None
    trouble: str | None = None

    @property
    def peak(self) -> int:
        """The larger of both predicted peaks, in bytes of GPU memory."""
        return max(plan.peak for plan in (self.training, self.sampling) if plan is not None)

    @property
    def host(self) -> int:
        """The larger of what both keep in host memory, in bytes."""
        return max(plan.host for plan in (self.training, self.sampling) if plan is not None)


def plan_runs(params: Params, name: str, *, gpu_bytes: int, host_bytes: int, rates: Rates = SLOW) -> Iterator[RunPlan]:
    """A plan for each of the study's runs on hub bases whose sizes are known, for what its stages will ask.

    gpu_bytes, rates: of one GPU; host_bytes: memory of the machine. Raises UserError for a damaged config.json, and for
    a suite that is neither here nor of known size.
    """
    study, asked = params.study(name), dict[tuple[str, ...], Asked]()
    for run, settings in params.runs_of(name).items():
        base = params.base_of(run)
        config = config_of_base(params, base)
        if config is None:
            continue
        suites = suites_asked(study, settings)
        if suites not in asked:
            # The stage plans when it asks for the first seed's answers.
            asked[suites] = asked_of(study, suites, study.seeds[0], study.sampling.samples_per_prompt)
        host = int(HOST_SHARE * host_bytes)
        yield plan_run(params, run, config, asked[suites], gpu_bytes=gpu_bytes, host_bytes=host, rates=rates)


def plan_run(
    params: Params,
    name: str,
    config: Any,
    asked: Asked,
    *,
    gpu_bytes: int,
    host_bytes: int,
    rates: Rates = SLOW,
    row_tokens: int | None = None,
) -> RunPlan:
    """One run's plans on the base of `config`, of which so much is asked.

    host_bytes: what its weights may take of host memory. row_tokens: of the longest row, None for the study's limit.
    """
    run = params.run(name)
    study = params.study(run.study)
    training, sampling, precision = study.training, study.sampling, study.training.precision
    assert precision != "float32"
    done: dict[str, Any] = {"run": name, "base": params.base_of(name), "asked": asked}
    try:
        if run.data is not None:
            done["training"] = plan_memory(
                routing_to(config, run.active_in("training")),
                run.lora,
                precision=precision,
                optimizer=training.optimizer,
                sequence_length=row_tokens or training.max_tokens,
                effective_batch=training.batch,
                gpu_bytes=gpu_bytes,
                host_bytes=host_bytes,
                devices=training.devices,
            )
        done["sampling"] = plan_sampling(
            routing_to(config, run.active_in("sampling")),
            largest_adapter(params, name),
            precision=precision,
            new_tokens=sampling.max_new_tokens,
            gpu_bytes=gpu_bytes,
            host_bytes=host_bytes,
            requests=asked.answers,
            prompt_tokens=asked.longest_tokens,
            most=sampling.batch,
            rates=rates,
        )
    except UserError as error:
        done["trouble"] = str(error)
    return RunPlan(**done)


def largest_adapter(params: Params, name: str) -> AdapterSpec | None:
    """The adapter that a run is sampled with; None where it has none."""
    run = params.run(name)
    return run.lora if run.data is not None else None
