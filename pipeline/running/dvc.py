"""Drive DVC: what is out of date, `dvc repro` of some stages, dvc.lock, and the files of DVC that a kill cuts short.

Whatever knows or changes DVC's insides is here. As a program, this is `dvc` for `repro`: it ends with the process that
started it, and takes nobody for a reader or writer of a file who is not.
"""

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
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
READERS = Path(".dvc/tmp/rwlock")
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


def set_aside_unreadable_files() -> bool:
    """Move dvc.lock, and DVC's list of who reads what, to the cache folder where they cannot be read; were there any?

    DVC does not write them in one piece, so a kill may leave a part. DVC's run cache knows what dvc.lock said.
    """
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException

    found = False
    # Where there is no repository, or another DVC holds it, nothing is found.
    with contextlib.suppress(DvcException), repository() as repo, repo.lock:
        readers = {
            LOCK: lambda: Lockfile(repo, str(LOCK.resolve())).load(),
            READERS: lambda: json.loads(READERS.read_bytes()),
        }
        for path, read in readers.items():
            try:
                if path.exists():
                    read()
            except (DvcException, ValueError) as error:
                aside = path.replace(CACHE / f"{path.name}.cut_short")
                print(f"{path} cannot be read ({with_causes(error)}). It is now {aside}, and made again.", flush=True)
                found = True
    return found


def is_changed(stage: str) -> bool:
    """Whether DVC finds anything to do for a stage and all that it depends on.

    Its files that a kill cut short are set aside: then there is.
    Raises UserError where DVC cannot tell, as other files of its own are broken.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    try:
        with repository() as repo:
            return bool(out_of_date(repo, stage))
    except LockError:
        return True  # another DVC is at work, or was killed: `dvc repro` waits for it
    except DvcException as error:
        if set_aside_unreadable_files():
            return True
        raise UserError(f"DVC cannot go on: {with_causes(error)}") from error


def out_of_date(repo: Any, stage: str) -> dict[str, Any]:
    """DVC's status of a stage and all that it depends on in `repo` (a dvc.repo.Repo): name -> what changed.

    DVC parses params.yaml again for every stage that reads it, and looks through all of it for every key that a stage
    names, which takes longer than everything else here. Nothing changes the file meanwhile: it is parsed once, and a
    key leads to its value.
    """
    import dvc.dependency.param as params
    from dvc.utils.serialize import LOADERS, load_yaml

    def value_at(content: Any, key: str, separator: str) -> Any:
        """As dpath.get, for a key without wildcards. Raises KeyError."""
        for part in key.split(separator):
            if not isinstance(content, dict):
                raise KeyError(key)
            content = content[part]
        return content

    LOADERS[".yaml"], looked_up = functools.cache(load_yaml), params.dpath
    params.dpath = SimpleNamespace(get=value_at)
    try:
        found: dict[str, Any] = repo.status(targets=[stage], with_deps=True)
        return found
    finally:
        del LOADERS[".yaml"]
        params.dpath = looked_up


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
