"""Before a study's first stage: what would stop it hours later is said now, for all of its runs, in one table.

What concerns every run (a judge's key, the lock, the disk) refuses the study. What concerns some (a model that does not
fit this card, one that the hub does not give us, a key of one API) leaves them out, and what continues them; the others
go on.
"""

import itertools
import os
import shutil
import sysconfig
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from pipeline.api.endpoint import read_key
from pipeline.common.errors import UserError
from pipeline.common.machine import AMPERE, Gpu, gpus, memory_bytes, torch_is_cpu_build
from pipeline.doctor.disk import check_disk_for
from pipeline.doctor.models import check_model
from pipeline.doctor.plans import plan_runs
from pipeline.doctor.probe import probe_all
from pipeline.models.cards import rates_of
from pipeline.models.hub import is_cached
from pipeline.params.schema import Params

CPU_LOCK = "the packages are those of the CPU lock, whose torch uses no GPU: make setup LOCK=gpu"


def check_study(params: Params, name: str) -> dict[str, str]:
    """The runs that cannot be done on this machine, with the reason for each; empty where all can.

    Raises UserError, one line a reason, when the study as a whole cannot be done, or none of its runs can.
    """
    if params.study(name).world == "toy":
        return {}
    whole = list(_of_the_study(params, name))
    runs = params.runs_of(name)
    local = [run for run in runs if params.base_of(run) in params.bases.hub]
    blocked = dict(_of_keys(params, runs))
    if local:
        reasons = list(_of_the_machine())
        found = _of_memory(params, name), _of_the_hub(params, local)
        blocked |= dict.fromkeys(local, "; ".join(reasons)) if reasons else dict(itertools.chain(*found))
    for run in runs:
        first = next((link for link in params.chain(run) if link in blocked), None)
        if first is not None and run not in blocked:
            blocked[run] = f"it continues {first}, which cannot be done"
    if whole or (blocked and len(blocked) == len(runs)):
        lines = [f"study {name} cannot be done on this machine as it is; nothing was started.", *whole]
        raise UserError("\n".join([*lines, *table(blocked)]))
    return blocked


def check_cluster(params: Params, name: str) -> None:
    """Raise UserError, one line a reason, when the study cannot be done from this head node of a cluster.

    What concerns the study is checked here: keys, which the head alone has, the lock, which all nodes share, and the
    disk for what is pulled. What a node lacks fails the stage that is started on it (docs/cluster.md).
    """
    if params.study(name).world == "toy":
        return
    lines = [*_of_the_study(params, name, here=False), *table(dict(_of_keys(params, params.runs_of(name))))]
    if torch_is_cpu_build() and not params.bases.hub.keys().isdisjoint(params.bases_of(name)):
        lines.append(f"  {CPU_LOCK}")
    if lines:
        begins = f"study {name} cannot be done from this head node as it is; nothing was started."
        raise UserError("\n".join([begins, *lines]))


def table(blocked: dict[str, str]) -> list[str]:
    """One line a reason: the runs that it keeps from being done."""
    reasons: dict[str, list[str]] = {}
    for run, reason in blocked.items():
        reasons.setdefault(reason, []).append(run)
    return [
        f"  {len(runs)} run{'s' * (len(runs) > 1)} ({', '.join(runs)}): {reason}" for reason, runs in reasons.items()
    ]


def _of_the_study(params: Params, name: str, *, here: bool = True) -> Iterator[str]:
    """What keeps every run from being done; here: its models are loaded on this machine."""
    for judge, config in params.study(name).judges.items():
        try:
            read_key(config)
        except UserError as error:
            yield f"  judge {judge}: {error}"
    try:
        check_disk_for(params, name, here=here)
    except UserError as error:
        yield f"  disk: {error}"


def _of_keys(params: Params, runs: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Those of `runs` that are behind an API whose key is not there."""
    for run in runs:
        base = params.base_of(run)
        if base not in params.bases.api:
            continue
        try:
            read_key(params.bases.api[base].client(None, max_reply_tokens=1))
        except UserError as error:
            yield run, f"bases.api.{base}: {error}"


def _of_the_hub(params: Params, runs: list[str]) -> Iterator[tuple[str, str]]:
    """Those of `runs` on a base that the hub does not give us, which would show only when it is that base's turn."""
    hub = {base: params.bases.hub[base] for base in dict.fromkeys(map(params.base_of, runs))}
    absent = {base: own for base, own in hub.items() if not is_cached(own.repository, own.revision)}
    asked = probe_all({base: partial(check_model, base, own) for base, own in absent.items()})
    refused = {base: check for base, check in asked.items() if check.level == "fail"}
    for run in runs:
        if (check := refused.get(params.base_of(run))) is not None:
            yield run, f"{check.found}: {check.remedy}"


def _of_the_machine() -> Iterator[str]:
    """What keeps any model from being trained and sampled here."""
    if torch_is_cpu_build():
        yield CPU_LOCK
    if usable_gpu() is None:
        yield f"no GPU of compute capability {AMPERE:g} or more was found ({gpus().trouble or 'older ones only'})"
        return
    # Triton builds its launcher with the system's compiler, at the first kernel.
    compiler = os.environ.get("CC") or next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None or shutil.which(compiler) is None:
        yield "no C compiler was found, which Triton's kernels need: apt install gcc, or set CC"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        yield f"{header} is missing, which Triton's kernels need: apt install python3-dev"


def _of_memory(params: Params, name: str) -> Iterator[tuple[str, str]]:
    """Runs that have no memory plan on this machine's GPU."""
    gpu = usable_gpu()
    if gpu is None or gpu.memory is None:
        return
    rates = rates_of(gpu.name)
    for plan in plan_runs(params, name, gpu_bytes=gpu.memory, host_bytes=memory_bytes(), rates=rates):
        if plan.trouble is not None:
            yield plan.run, plan.trouble


def usable_gpu() -> Gpu | None:
    """The first GPU that hub models can be computed on."""
    return next((gpu for gpu in gpus().found if gpu.capability >= AMPERE), None)
