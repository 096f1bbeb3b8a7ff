"""Where a study's runs fit: plans of training and of sampling, run by run, for a card that may not be here."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.common.errors import UserError
from pipeline.models.families.registry import routing_to
from pipeline.models.known import config_of
from pipeline.models.sizes import HOST_SHARE
from pipeline.models.spec import AdapterSpec
from pipeline.params.schema import Params
from pipeline.sampling.plan import LONGEST_PROMPT, MOST, SamplingPlan, plan_sampling
from pipeline.training.memory import MemoryPlan, plan_memory


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """How one run is trained and sampled; None where it is not, and `trouble` where it cannot be, with the numbers."""

    run: str
    base: str
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


def plan_runs(params: Params, name: str, *, gpu_bytes: int, host_bytes: int) -> Iterator[RunPlan]:
    """A plan for each of the study's runs on hub bases whose sizes are known.

    gpu_bytes: memory of one GPU; host_bytes: memory of the machine. Raises UserError for a damaged config.json.
    """
    for run in params.runs_of(name):
        base = params.base_of(run)
        if base not in params.bases.hub:
            continue
        hub = params.bases.hub[base]
        config = config_of(hub.repository, hub.revision)
        if config is not None:
            yield plan_run(params, run, config, gpu_bytes=gpu_bytes, host_bytes=int(HOST_SHARE * host_bytes))


def plan_run(
    params: Params,
    name: str,
    config: Any,
    *,
    gpu_bytes: int,
    host_bytes: int,
    row_tokens: int | None = None,
    requests: int = MOST,
    prompt_tokens: int = LONGEST_PROMPT,
) -> RunPlan:
    """One run's plans on the base of `config`.

    host_bytes: what its weights may take of host memory. row_tokens: of the longest row, None for the study's limit;
    requests: how many answers are sampled; prompt_tokens: of the longest prompt.
    """
    run = params.run(name)
    study = params.study(run.study)
    training, sampling, precision = study.training, study.sampling, study.training.precision
    assert precision != "float32"
    done: dict[str, Any] = {"run": name, "base": params.base_of(name)}
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
            requests=requests,
            prompt_tokens=prompt_tokens,
            most=sampling.batch,
        )
    except UserError as error:
        done["trouble"] = str(error)
    return RunPlan(**done)


def largest_adapter(params: Params, name: str) -> AdapterSpec | None:
    """The adapter that a run is sampled with; None where it has none."""
    run = params.run(name)
    return run.lora if run.data is not None else None
