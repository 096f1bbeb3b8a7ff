"""Rebuild a study on a Ray cluster: DVC says what is to be done, Ray does it somewhere (docs/cluster.md).

Every stage that DVC finds out of date is a Ray task; the tasks of its inputs are its arguments, so Ray knows the
order. Machines share a commit, which Ray carries to them, and a DVC remote. This machine, Ray's head node, then
writes down what DVC recorded of each stage on its node, pulls, and has `dvc repro` go through all stages, to which the
probe and aggregate stages are left.
"""

import contextlib
import logging
import os
import re
import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.common import ledger
from pipeline.common.errors import UserError
from pipeline.common.fingerprints import library_versions
from pipeline.common.git import git
from pipeline.common.paths import CACHE
from pipeline.params.schema import Params
from pipeline.running.cluster import task
from pipeline.running.cluster.board import Board
from pipeline.running.cluster.plan import Plan, Task, make_plan, remote_of
from pipeline.running.dvc import LOG, repository, repro, told
from pipeline.running.local import MEMORY_A_JOB_GB
from pipeline.running.lock import keep_in_lock, records, sort_lock
from pipeline.running.prepare import fetch_what_is_missing
from pipeline.running.progress import Progress

GRID = CACHE / "reproduce.grid"
POLL_S = 0.5
CONNECT_S = 10.0
RETRIES = 5  # of a stage whose node or process died; one that fails by itself is not tried again
LAST_LINES = 8
# Ray gives its head node one unit of this resource, of which other libraries take thousandths. Judging takes more
# than half of it: it is done there, where the verdict cache knows what was paid and what is left of the budget,
# and one stage at a time, because a judge's requests a minute are counted within one process.
HEAD = "node:__internal_head__"
JUDGING = {HEAD: 0.6}


@dataclass
class Outcome:
    """What became of the tasks: DVC's records of those that are done, the last words of those that failed."""

    lock: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def reproduce(params: Params, study: str) -> None:
    """Rebuild the study. Raises UserError where stages failed: the others were done, and asking again goes on."""
    commit = clean_commit()
    check_address(os.environ.get("RAY_ADDRESS", ""))
    CACHE.mkdir(exist_ok=True)
    LOG.write_text("", encoding="utf-8")
    if params.study(study).world == "hub":
        fetch_what_is_missing(params, study)  # for the probe, which is done here; a node's would end the same way
    with told("DVC cannot go on"):
        outcome = rebuild(params, study, commit)
    if outcome.failures:
        raise UserError(
            "\n".join(outcome.failures.values())
            + f"\nEverything else that could be done is kept; the logs are in {LOG}, and the same command continues."
        )
    stages = params.stages_of(study)
    failure = repro(stages, Progress(stages, done=set(outcome.lock)))
    sort_lock()
    if failure:
        raise UserError(f"{failure}\nWhat was finished is kept; the whole output is in {LOG}.")


def rebuild(params: Params, study: str, commit: str) -> Outcome:
    """Have what DVC finds out of date done on the cluster, and bring here what came out."""
    with repository() as repo:
        plan = make_plan(repo, params, study)
        remote, settings = remote_of(repo)
        if plan.ready:
            repo.push(targets=list(plan.ready))
    order = {
        "commit": commit,
        "study": study,
        "remote": remote,
        "settings": settings,
        "libraries": library_versions(),
    }
    outcome = Outcome()
    if plan.tasks:
        try:
            # What Ray says of nodes that die is long, and would run into the grid.
            with LOG.open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
                run_tasks(plan, order, outcome)
        finally:
            keep_in_lock(outcome.lock)
    if outcome.lock:
        with repository() as repo:
            repo.pull(targets=sorted(outcome.lock), force=True, run_cache=True)
    return outcome


def clean_commit() -> str:
    """The commit that is checked out. Raises UserError unless it is all that results depend on."""
    code = ledger.code()
    if code["commit"] is None:
        raise UserError("there is no git commit here, and other machines see nothing but a commit: git commit first.")
    if code["changed"]:
        raise UserError(
            f"{', '.join(code['changed'])} differ from the commit, and other machines see nothing but the commit: "
            "commit or stash them, then run again."
        )
    return code["commit"]


def make_bundle() -> bytes:
    """The commit with its history, as one file that can be cloned. Raises UserError where the history is cut off."""
    if git("rev-parse", "--is-shallow-repository").stdout.strip() == "true":
        raise UserError("this is a shallow clone, which other machines cannot clone: git fetch --unshallow first.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "commit.bundle"
        git("bundle", "create", "--quiet", str(file), "HEAD").check_returncode()
        return file.read_bytes()


def run_tasks(plan: Plan, order: dict[str, Any], outcome: Outcome) -> None:
    """Have Ray do the tasks, and show where they are, until each is done, failed, or not to be run."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.util.queue import Queue

    connect(plan)
    try:
        events = Queue(actor_options={"num_cpus": 0, "resources": {HEAD: 0.001}})
        board = Board([task.stage for task in plan.tasks], GRID)
        pending = {reference: task for task, reference in submit(plan, order, events)}
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=POLL_S)
            names = node_names()
            # In the plan's order: an input that failed is known before the stages that it keeps from running.
            for reference in [reference for reference in pending if reference in ready]:
                settle(pending.pop(reference), reference, board, names, outcome)
            board.lose(names)
            for stage, node in events.get_nowait_batch(events.qsize()):
                board.run(stage, names.get(node, node[:6]))
            board.show(last=not pending)
    finally:
        ray.shutdown()


def connect(plan: Plan) -> None:
    """Join the Ray cluster that RAY_ADDRESS or this machine names, or start one here.

    Raises UserError where that fails, or where this is not its head node.
    """
    import ray

    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"the Ray cluster cannot be used: {error}") from error
    nodes = [node for node in ray.nodes() if node["Alive"]]
    here = ray.get_runtime_context().get_node_id()
    if not any(HEAD in node["Resources"] for node in nodes if node["NodeID"] == here):
        ray.shutdown()
        raise UserError(
            "this is not the head node of the Ray cluster: run the command there, where judging is done and where "
            "the verdict cache and the results are to be."
        )
    print(f"Ray: {len(nodes)} node{'s' * (len(nodes) > 1)}, {len(plan.tasks)} stages to do.", flush=True)
    gpus = max(task.gpus for task in plan.tasks)
    if gpus and not any(node["Resources"].get("GPU", 0) >= gpus for node in nodes):
        print(f"warning: no node has {gpus} GPU{'s' * (gpus > 1)}; such stages wait until one joins.", flush=True)


def check_address(address: str) -> None:
    """Raise UserError where nothing listens at a HOST:PORT; Ray itself tries for over three minutes."""
    match = re.fullmatch(r"(?:\[(.+)\]|([^:/\[\]]+)):(\d+)", address)
    if not match:
        return
    host, port = match[1] or match[2], match[3]
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"RAY_ADDRESS is {address}, and no Ray cluster answers there ({error}): start one (docs/cluster.md), or "
            "unset it to have one started here."
        ) from error


def submit(plan: Plan, order: dict[str, Any], events: Any) -> list[tuple[Task, Any]]:
    """Give Ray every task, with the references of those that it must follow."""
    import ray

    # A worker cannot import this repository before it has checked it out.
    ray.cloudpickle.register_pickle_by_value(task)
    run_stage = ray.remote(task.run_stage)
    bundle = ray.put(make_bundle())
    known = records(list(plan.ready))
    references: dict[str, Any] = {name: {"lock": {name: known[name]}} for name in plan.ready}
    for each in plan.tasks:
        options = run_stage.options(
            name=each.stage,
            max_retries=RETRIES,
            num_cpus=0 if each.judges else 1,  # judging waits for a network, and a head node may offer no CPU
            num_gpus=each.gpus,
            memory=int(MEMORY_A_JOB_GB * 1e9),
            resources=JUDGING if each.judges else {},
        )
        mine = order | {"stage": each.stage, "cache": str(CACHE.resolve()) if each.judges else ""}
        references[each.stage] = options.remote(mine, bundle, events, *(references[name] for name in each.inputs))
    return [(each, references[each.stage]) for each in plan.tasks]


def node_names() -> dict[str, str]:
    """The nodes that are alive: name by id, told apart where several have one name (nodes of one machine)."""
    import ray

    names = {node["NodeID"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}
    taken = list(names.values())
    return {node: name if taken.count(name) == 1 else f"{name}#{node[:4]}" for node, name in names.items()}


def settle(each: Task, reference: Any, board: Board, names: dict[str, str], outcome: Outcome) -> None:
    """Take a task's result, or say why there is none."""
    import ray

    if any(board.cells[name].state in ("failed", "not run") for name in each.inputs if name in board.cells):
        board.end(each.stage, "not run")
        return
    try:
        result = ray.get(reference)
        outcome.lock |= result["lock"]
        state = "done"
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        told = cause.args[0] if isinstance(cause, RuntimeError) and isinstance(cause.args[0], dict) else None
        result = told or {"node": "", "log": str(error), "ledger": "", "seconds": 0.0}
        state = "failed"
    node = names.get(result["node"], result["node"][:6])
    board.end(each.stage, state, node, result["seconds"])
    if state == "failed":
        lines = [line.rpartition("\r")[2] for line in result["log"].splitlines() if line.strip()]
        last = "".join(f"\n    {line}" for line in lines[-LAST_LINES:])
        outcome.failures[each.stage] = f"{each.stage} failed on {node or 'a node that is gone'}:{last}"
    keep_records(each.stage, result["log"], result["ledger"])


def keep_records(stage: str, log: str, lines: str) -> None:
    """Add a stage's output to the study's log, and what its node recorded of it to the ledger here."""
    with LOG.open("a", encoding="utf-8") as stream:
        stream.write(f"\n== {stage}\n{log}")
    ledger.add(stage, lines)
