"""What a Ray task does: a checkout of the commit in a folder of its own, and the stage in a process of its own.

Ray takes these functions to its workers by value, because a worker has no checkout yet: they use the standard
library, Ray, and what Ray itself needs. All else is the commit's own code (pipeline/running/cluster/stage.py).
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Results stay below the 100 kB up to which Ray keeps them with the head, where no node's death loses them.
TAIL_BYTES = 20_000


def run_stage(order: dict[str, Any], bundle: bytes, events: Any, *inputs: dict[str, Any]) -> dict[str, Any]:
    """Do the ordered stage; return what DVC recorded of it (`lock`), its ledger, the log's end, node and seconds.

    `bundle` is a git bundle of the commit, `inputs` are the results of the stages that this one reads. Raises
    RuntimeError with a dict of the same kind when the stage fails; its folder stays, and the next attempt on this
    node continues in it.
    """
    import ray

    stage = order["stage"]
    node = ray.get_runtime_context().get_node_id()
    events.put((stage, node))
    started = time.monotonic()
    lock = {name: entry for result in inputs for name, entry in result["lock"].items()}
    order = order | {"lock": lock, "data": str(node_folder() / "data")}
    commit_folder = node_folder() / order["commit"][:12]
    commit_folder.mkdir(exist_ok=True)
    folder, log = commit_folder / stage, commit_folder / f"{stage}.log"
    with exclusive_lock(commit_folder / f"{stage}.lock") as held:
        clone_commit(bundle, folder)
        status = run(order, folder, log, held)
        with log.open("rb") as stream:
            stream.seek(-min(TAIL_BYTES, log.stat().st_size), os.SEEK_END)
            text = stream.read().decode(errors="replace")
        # As pipeline/common/ledger.py: path_of has it.
        ledger = folder / ".cache" / "ledger" / f"{stage.replace('pin_api@', 'pin@')}.jsonl"
        result = {
            "node": node,
            "log": text,
            "ledger": ledger.read_text(encoding="utf-8") if ledger.exists() else "",
            "seconds": time.monotonic() - started,
        }
        if status:
            raise RuntimeError(result)
        result["lock"] = {stage: locked(folder, stage)}
        shutil.rmtree(folder)
        log.unlink()
    return result


def node_folder() -> Path:
    """This user's folder on this node, below TMPDIR: nobody else may have made it."""
    folder = Path(tempfile.gettempdir()) / f"emoe-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else; start Ray on this node with another TMPDIR")
    return folder


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[int]:
    """Hold a lock, waiting for it: a process that an earlier attempt left behind must be gone first."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream.fileno()


def clone_commit(bundle: bytes, folder: Path) -> None:
    """Clone the bundle's commit into `folder`, all of it or nothing; a folder that is there is kept."""
    if folder.exists():
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        file = Path(scratch) / "commit.bundle"
        file.write_bytes(bundle)
        clone = Path(scratch) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(file), str(clone)], check=True, stdin=subprocess.DEVNULL)
        clone.rename(folder)


def run(order: dict[str, Any], folder: Path, log: Path, held: int) -> int:
    """Start the stage's process, give it its order, and wait; return its exit status.

    Its standard input stays open: should this process die, the stage reads its end there and stops. It shares the
    lock `held`, which is therefore free only when both are gone.
    """
    command = [sys.executable, "-m", "pipeline.running.cluster.stage"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[held],
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        status = process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    return status


def locked(folder: Path, stage: str) -> dict[str, Any]:
    """The stage's entry in dvc.lock as DVC left it."""
    import yaml

    return yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"][stage]
