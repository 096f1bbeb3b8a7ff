"""One stage in a working folder of its own, as a Ray task starts it: python -m pipeline.running.cluster.stage.

The order is a line of JSON on standard input. DVC pulls the stage's inputs from the remote, restores the stage from
the remote's run cache or runs it, and pushes what came out. When whoever gave the order is dead, its successor is
starting elsewhere: this process and all that it started end then, at once.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.common import ledger
from pipeline.common.errors import UserError, with_causes
from pipeline.common.files import sha256_json
from pipeline.common.paths import CACHE, PARAMS
from pipeline.common.processes import end_with_parent, path_of_this_python
from pipeline.params.folders import have
from pipeline.params.load import load_params
from pipeline.params.schema import Params
from pipeline.running.dvc import repository, told, use_remote
from pipeline.running.lock import records, write_lock


def main() -> int:
    """Do what the order says; return the exit status (0 done, 2 it failed and the log says why)."""
    order = json.loads(sys.stdin.buffer.readline())
    end_with_parent()
    try:
        with told("DVC cannot go on"):
            do(order)
    except (UserError, OSError) as error:
        print(f"error: {with_causes(error)}", file=sys.stderr)
        return 2
    return 0


def do(order: dict[str, Any]) -> None:
    """Pull the inputs, reproduce the one stage, push outputs and run cache."""
    stage, lock = order["stage"], order["lock"]
    check_libraries(order["libraries"])
    if order["cache"]:
        share_cache(Path(order["cache"]))
    configure(order["remote"], order["settings"])
    write_lock(lock)
    os.environ["PATH"] = path_of_this_python()
    os.environ["PYTHONUNBUFFERED"] = "1"
    with repository() as repo:
        if lock:
            repo.pull(targets=list(lock), force=True)
        params = load_params()
        if params.study(order["study"]).world == "hub":
            prepare_hub(params, order["study"], Path(order["data"]), list(lock))
        repo.reproduce(stage, single_item=True, pull=True)
        push(repo, stage)


def push(repo: Any, stage: str) -> None:
    """Push the stage's outputs and ledger, then its run cache: what that restores is there.

    A node may die after this and before the head knows; the next one restores the stage, and has the ledger from here.
    It is kept under the hash of DVC's record of the stage, which is the same for who runs it and for who restores it.
    """
    repo.push(targets=[stage])
    remote = repo.cloud.get_remote()
    there = remote.fs.join(remote.path, "ledger", f"{sha256_json(records([stage])[stage])}.jsonl")
    if remote.fs.exists(there):
        ledger.add(stage, remote.fs.read_text(there))
    if (here := ledger.path_of(stage)).exists():
        remote.fs.put_file(str(here), there)
    repo.push(targets=[stage], run_cache=True)


def check_libraries(expected: dict[str, str]) -> None:
    """Raise UserError where this node's libraries are not the head's: results would differ."""
    found = {name: version(name) for name in expected}
    differ = [f"{name} {found[name]} and not {expected[name]}" for name in found if found[name] != expected[name]]
    if differ:
        raise UserError(f"this node has {', '.join(differ)} as the head: run `make setup` there at the same commit.")


def share_cache(folder: Path) -> None:
    """Use the head's cache folder, where the verdicts and each judge's account are."""
    CACHE.unlink(missing_ok=True)
    CACHE.symlink_to(folder)


def configure(remote: str, settings: dict[str, Any]) -> None:
    """Use the head's DVC remote, and leave nothing outside of this folder. Raises UserError if it is not seen here."""
    url = settings["url"]
    if "://" not in url and not Path(url).is_dir():
        raise UserError(
            f"this node does not see the DVC remote {url}; put it on storage that all nodes share, or in a bucket: "
            "dvc remote modify --local NAME url FOLDER-OR-URL (docs/cluster.md)."
        )
    use_remote(remote, settings)


def prepare_hub(params: Params, study: str, data: Path, inputs: list[str]) -> None:
    """Have the upstream data and the base's weights on this node: fetched once a node, shared by its stages."""
    from pipeline.running.cluster.task import exclusive_lock
    from pipeline.running.prepare import fetch_what_is_missing

    data.mkdir(exist_ok=True)
    if not Path("data").is_symlink():
        Path("data").symlink_to(data)
    with exclusive_lock(data.with_suffix(".lock")):
        fetch_what_is_missing(params, study)
    for name in inputs:
        kind, _, base = name.partition("@")
        if kind == "pin":
            have(params.hub_base(base), f"{PARAMS}: bases.hub.{base}")


if __name__ == "__main__":
    sys.exit(main())
