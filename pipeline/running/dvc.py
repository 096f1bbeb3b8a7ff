"""Drive DVC: `dvc repro` of some stages, and what a killed one left.

Whatever knows or changes DVC's insides is in this room: here, in worker.py, lock.py, shown.py and status.py.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from pipeline.common.errors import UserError, with_causes
from pipeline.common.git import ELSEWHERE
from pipeline.common.paths import CACHE
from pipeline.common.processes import lives, path_of_this_python
from pipeline.running.progress import Progress

LOG = CACHE / "reproduce.log"
# DVC's own place for what it knows of files is open to every user of the machine.
SITE_CACHE = Path(".dvc/tmp/site")
ENDING_S = 60.0
_RUNNING = re.compile(r"Running stage '(\S+?)'")
_FAILED = re.compile(r"failed to reproduce '(\S+?)'")
_BLOCKED = "is busy, it is being blocked by"
_SKIPPED = re.compile(r"Stage '(\S+?)' (?:didn't change|is cached)")
_WORKER = "pipeline.running.worker"


@contextlib.contextmanager
def repository(settings: dict[str, Any] | None = None) -> Iterator[Any]:
    """This checkout as DVC has it (a dvc.repo.Repo), with these settings over its own, in this process."""
    from dvc.repo import Repo

    os.environ["DVC_SITE_CACHE_DIR"] = str(SITE_CACHE.resolve())
    for name in ELSEWHERE:
        os.environ.pop(name, None)
    with Repo(config=settings) as repo:
        yield repo


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Turn DVC's errors into a UserError: `what`, and their causes."""
    from dvc.exceptions import DvcException

    try:
        yield
    except DvcException as error:
        raise UserError(f"{what}: {with_causes(error)}") from error


def repro(stages: list[str], progress: Progress, *, share_imports: bool = False) -> str | None:
    """Have DVC do these stages, one after another; returns None, or what failed and its last words.

    What they depend on must be among those before them, or be done: DVC is not let to look at it, as it takes a base
    that another `dvc repro` reads for busy.
    share_imports: stages are forked from a process that has imported what most do (pipeline/running/worker.py).
    """
    command = [sys.executable, "-m", _WORKER, *["--share-imports"] * share_imports, *stages]
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    # Unbuffered: a stage's line must come when it begins, not when a pipe's buffer is full.
    environment |= {"PYTHONUNBUFFERED": "1", "PATH": path_of_this_python()}
    environment |= {"DVC_SITE_CACHE_DIR": str(SITE_CACHE.resolve())}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    )
    assert process.stdout is not None
    current: str | None = None
    tail: list[str] = []
    with LOG.open("a", encoding="utf-8", buffering=1) as log:
        for line in process.stdout:
            log.write(line)
            tail = [*tail[-14:], line.rstrip().rpartition("\r")[2]]
            if started := _RUNNING.search(line):
                if current:
                    progress.finish(current, ran=True)
                current = started[1]
                progress.start(current)
            elif skipped := _SKIPPED.search(line):
                progress.finish(skipped[1], ran=False)
    if process.wait() == 0:
        if current:
            progress.finish(current, ran=True)
        return None
    words = [line.strip() for line in tail if line.startswith(("error:", "ERROR:", "  (PID "))] or tail[-3:]
    failed = next((found[1] for line in tail if (found := _FAILED.search(line))), current)
    if current and failed != current:
        progress.finish(current, ran=True)
    failure = f"{failed or ', '.join(stages)} failed: " + " ".join(words)
    return f"{failure}. Wait for these processes, or end them." if _BLOCKED in failure else failure


def wait_for_left_over() -> None:
    """Wait until what an earlier `reproduce` started here, and was killed before, has ended.

    Raises UserError where it does not end.
    """
    left = [process for process in psutil.process_iter(["cmdline"]) if _is_left_over(process)]
    if not left:
        return
    numbers = ", ".join(str(process.pid) for process in left)
    print(f"Waiting for what an earlier `make reproduce` started here to end (PID {numbers}).", flush=True)
    _, alive = psutil.wait_procs(left, timeout=ENDING_S)
    if alive := [process for process in alive if lives(process)]:
        numbers = " ".join(str(process.pid) for process in alive)
        raise UserError(f"an earlier `make reproduce` left processes that do not end; end them: kill -9 {numbers}")


def _is_left_over(process: psutil.Process) -> bool:
    if _WORKER not in (process.info["cmdline"] or ()):
        return False
    try:
        return Path(process.cwd()) == Path.cwd() and lives(process)
    except (psutil.Error, OSError):
        return False


def use_remote(name: str, settings: dict[str, Any]) -> None:
    """Use one remote from now on, and leave nothing of DVC's outside of this checkout."""
    from dvc.config import Config

    with Config.from_cwd().edit("local") as config:
        config["remote"] = {name: settings}
        config["core"] = {"remote": name, "site_cache_dir": str(SITE_CACHE.resolve())}
