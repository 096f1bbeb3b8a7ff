"""What of a study is to be done, in which order and on what: read off DVC's graph, its status, and params.yaml."""

from dataclasses import dataclass
from typing import Any

from pipeline.common.errors import UserError
from pipeline.params.schema import Params
from pipeline.running.status import out_of_date


@dataclass(frozen=True, kw_only=True)
class Task:
    """One stage that DVC finds out of date. `inputs` are the stages whose outputs it reads, `gpus` what it needs."""

    stage: str
    inputs: tuple[str, ...]
    gpus: int

    @property
    def judges(self) -> bool:
        """Whether it spends a judge's budget."""
        return self.stage.startswith("judge@")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Tasks in an order in which inputs come first; `ready` are the stages up to date here that tasks read from."""

    tasks: tuple[Task, ...]
    ready: tuple[str, ...]


def make_plan(repo: Any, params: Params, study: str) -> Plan:
    """The tasks of `study` in `repo` (a dvc.repo.Repo). Its last two stages are none: they follow on this machine.

    The probe loads models and asks the judge, whose budget and limits are counted here; the aggregate is a minute.
    """
    import networkx

    target = f"aggregate@{study}"
    graph = repo.index.graph
    aggregate = next(stage for stage in graph if stage.addressing == target)
    here = {target, f"probe@{study}"}
    changed = out_of_date(repo, params.stages_of(study))
    tasks: dict[str, Task] = {}
    ready: dict[str, None] = {}
    # DVC's edges go from a stage to those that it depends on.
    for stage in networkx.dfs_postorder_nodes(graph, aggregate):
        name = stage.addressing
        inputs = tuple(sorted(upstream.addressing for upstream in graph.successors(stage)))
        if name not in here and (name in changed or any(upstream in tasks for upstream in inputs)):
            tasks[name] = Task(stage=name, inputs=inputs, gpus=gpus(params, study, name))
            ready |= dict.fromkeys(upstream for upstream in inputs if upstream not in tasks)
    return Plan(tasks=tuple(tasks.values()), ready=tuple(ready))


def gpus(params: Params, study: str, stage: str) -> int:
    """How many GPUs a stage uses: the devices that params.yaml has it train or sample on; none in the toy world."""
    settings = params.study(study)
    if settings.world == "toy":
        return 0
    return {
        "train": settings.training.devices,
        "sample": settings.sampling.tensor_parallel * settings.sampling.data_parallel,
    }.get(stage.partition("@")[0], 0)


def remote_of(repo: Any) -> tuple[str, dict[str, Any]]:
    """Name and settings of DVC's default remote; a folder is made where there is none yet."""
    name = repo.config["core"].get("remote")
    if not name:
        raise UserError(
            "this repository has no default DVC remote: dvc remote add --local --default shared FOLDER-OR-URL"
        )
    settings = dict(repo.config["remote"][name])
    remote = repo.cloud.get_remote(name)
    if remote.fs.protocol == "local":
        remote.fs.makedirs(remote.path, exist_ok=True)
    return name, settings | {"url": str(settings["url"])}
