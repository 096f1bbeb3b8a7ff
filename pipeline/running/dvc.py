"""Drive DVC: `dvc repro` of some stages, dvc.lock, and who reads what.

Whatever knows or changes DVC's insides is here and in status.py. As a program, this is `dvc` for `repro`: it ends with
the process that started it, and takes nobody for a reader or writer of a file who is not.
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

from pipeline.common.environment import DVC_PROCESS
from pipeline.common.errors import UserError, with_causes
from pipeline.common.git import ELSEWHERE
from pipeline.common.paths import CACHE
from pipeline.common.processes import end_with_parent, lives, path_of_this_python, started
from pipeline.common.signals import end_gently
from pipeline.running.progress import Progress

LOG = CACHE / "reproduce.log"
LOCK = Path("dvc.lock")
# DVC's own place for what it knows of files is open to every user of the machine.
SITE_CACHE = Path(".dvc/tmp/site")
ENDING_S = 60.0
_RUNNING = re.compile(r"Running stage '(\S+?)'")
_FAILED = re.compile(r"failed to reproduce '(\S+?)'")
_BLOCKED = "is busy, it is being blocked by"
_SKIPPED = re.compile(r"Stage '(\S+?)' (?:didn't change|is cached)")
_MODULE = "pipeline.running.dvc"
_HERE = "emoe-dvc"


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


def repro(stages: list[str], progress: Progress) -> str | None:
    """Have DVC do these stages, one after another; returns None, or what failed and its last words.

    What they depend on must be among those before them, or be done: DVC is not let to look at it, as it takes a base
    that another `dvc repro` reads for busy.
    """
    command = [sys.executable, "-m", _MODULE, "--wait-for-lock", "repro", "--single-item", *stages]
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
    if _MODULE not in (process.info["cmdline"] or ()):
        return False
    try:
        return Path(process.cwd()) == Path.cwd() and lives(process)
    except (psutil.Error, OSError):
        return False


def keep_in_lock(entries: dict[str, Any]) -> None:
    """Put DVC's records of stages that were done on other machines into dvc.lock."""
    from dvc.utils.serialize import modify_yaml

    if entries:
        with modify_yaml(str(LOCK)) as lock:
            lock.setdefault("schema", "2.0")
            lock.setdefault("stages", {}).update(entries)
        sort_lock()


def write_lock(entries: dict[str, Any]) -> None:
    """A dvc.lock of these records alone: the commit's own is of another time, and perhaps of another machine."""
    from dvc.utils.serialize import dump_yaml

    dump_yaml(str(LOCK), {"schema": "2.0", "stages": entries})


def use_remote(name: str, settings: dict[str, Any]) -> None:
    """Use one remote from now on, and leave nothing of DVC's outside of this checkout."""
    from dvc.config import Config

    with Config.from_cwd().edit("local") as config:
        config["remote"] = {name: settings}
        config["core"] = {"remote": name, "site_cache_dir": str(SITE_CACHE.resolve())}


def records(stages: list[str]) -> dict[str, Any]:
    """What dvc.lock says of these stages."""
    from dvc.utils.serialize import load_yaml

    known = load_yaml(str(LOCK))["stages"] if stages else {}
    return {name: known[name] for name in stages}


def sort_lock() -> None:
    """Put dvc.lock's stages in alphabetical order: DVC appends them as they finish, which varies."""
    from dvc.utils.serialize import modify_yaml

    if LOCK.exists():
        with modify_yaml(str(LOCK)) as lock:
            lock["stages"] = dict(sorted(lock["stages"].items()))


def main(arguments: list[str]) -> int:
    """Run `dvc` with these arguments, as part of whoever started this process."""
    import dvc.rwlock
    from dvc.cli import main as run_dvc

    end_with_parent()
    end_gently(pass_on=True)  # DVC ignores Ctrl-C while a stage runs, and stops after it
    os.environ[DVC_PROCESS] = str(os.getpid())  # a shell may stand between this process and a stage's
    check = dvc.rwlock._check_blockers

    def check_blockers(tmp_dir: str, lock: dict[str, Any], info: dict[str, Any], **options: Any) -> None:
        forget_dead(lock)
        check(tmp_dir, lock, info, **options)

    dvc.rwlock._check_blockers = check_blockers
    # DVC writes this line beside the number of this process: a number alone soon names another one.
    sys.argv = [f"{_HERE}:{_boot()}:{started(psutil.Process())}", *arguments]
    return int(run_dvc(arguments))


def forget_dead(lock: dict[str, Any]) -> None:
    """Remove from DVC's list of readers and writers, in place, those that have ended: others may have their numbers."""
    for path, entry in list(lock["write"].items()):
        if entry and not _is_at_work(entry):
            del lock["write"][path]
    for path, entries in list(lock["read"].items()):
        lock["read"][path] = [entry for entry in entries if _is_at_work(entry)]
        if not lock["read"][path]:
            del lock["read"][path]


def _is_at_work(entry: dict[str, Any]) -> bool:
    """Whether the process of an entry (its number, and the words that it was started with) lives."""
    program, *words = str(entry["cmd"]).split(" ")
    try:
        process = psutil.Process(int(entry["pid"]))
        if not lives(process):
            return False
        if program.startswith(f"{_HERE}:"):
            _, boot, when = program.split(":")
            return boot == _boot() and when == started(process)
        return " ".join(process.cmdline()).endswith(" ".join(words or ["dvc"]))
    except (psutil.NoSuchProcess, ValueError):
        return False
    except psutil.AccessDenied:
        return True  # another user's: it lives


def _boot() -> str:
    """What names this start of the machine; "" where nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
