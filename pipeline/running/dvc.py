"""Drive DVC: what is out of date, `dvc repro` of some stages, and the files of DVC that a kill cuts short."""

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError, with_causes
from pipeline.common.paths import CACHE
from pipeline.running.progress import Progress

COLLECTED_S = 10.0
LOG = CACHE / "reproduce.log"
LOCK = Path("dvc.lock")
READERS = Path(".dvc/tmp/rwlock")
_RUNNING = re.compile(r"Running stage '(\S+?)'")
_FAILED = re.compile(r"failed to reproduce '(\S+?)'")
_BLOCKED = "is busy, it is being blocked by"
_SKIPPED = re.compile(r"Stage '(\S+?)' (?:didn't change|is cached)")


def put_aside_what_is_cut_short() -> bool:
    """Move what cannot be read of dvc.lock, and of DVC's list of who reads what, to the cache folder; is there any?

    DVC does not write them in one piece, so a kill may leave a part. DVC's run cache knows what dvc.lock said.
    """
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    found = False
    # Where there is no repository, or another DVC holds it, nothing is found.
    with contextlib.suppress(DvcException), Repo() as repo, repo.lock:
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


def changed(stage: str) -> bool:
    """Whether DVC finds anything to do for a stage and all that it depends on.

    Its files that a kill cut short are put aside: then there is.
    Raises UserError where DVC cannot tell, as other files of its own are broken.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return bool(out_of_date(repo, stage))
    except LockError:
        return True  # another DVC is at work, or was killed: `dvc repro` waits for it
    except DvcException as error:
        if put_aside_what_is_cut_short():
            return True
        raise UserError(f"DVC cannot go on: {with_causes(error)}") from error


def out_of_date(repo: Any, stage: str) -> dict[str, Any]:
    """DVC's status of a stage and all that it depends on in `repo` (a dvc.repo.Repo): name -> what changed.

    DVC parses params.yaml again for every stage that reads it, which takes longer than everything else here;
    nothing changes the file meanwhile, so it is parsed once.
    """
    from dvc.utils.serialize import LOADERS, load_yaml

    LOADERS[".yaml"] = functools.cache(load_yaml)
    try:
        found: dict[str, Any] = repo.status(targets=[stage], with_deps=True)
        return found
    finally:
        del LOADERS[".yaml"]


def repro(stages: list[str], progress: Progress) -> str | None:
    """Have DVC do these stages, one after another; returns None, or what failed and its last words.

    What they depend on must be among those before them, or be done: DVC is not let to look at it, as it takes a base
    that another `dvc repro` reads for busy. It also takes one for busy whose reader was killed, until the system has
    collected that process, seconds later on some machines; so it is asked again for as long.
    """
    started = time.monotonic()
    while (failure := _dvc_repro(stages, progress)) and _BLOCKED in failure:
        if time.monotonic() - started > COLLECTED_S:
            return f"{failure}. Wait for these processes, or end them; if they are not DVC's, remove .dvc/tmp/rwlock."
        time.sleep(0.5)
    return failure


def _dvc_repro(stages: list[str], progress: Progress) -> str | None:
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *stages]
    # Unbuffered: a stage's line must come when it begins, not when a pipe's buffer is full.
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PATH": _path()}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
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
    return f"{failed or ', '.join(stages)} failed: " + " ".join(words)


def sort_lock() -> None:
    """Put dvc.lock's stages in alphabetical order: DVC appends them as they finish, which varies."""
    from dvc.utils.serialize import modify_yaml

    if LOCK.exists():
        with modify_yaml(str(LOCK)) as lock:
            lock["stages"] = dict(sorted(lock["stages"].items()))


def _path() -> str:
    """PATH with this Python first: dvc.yaml says `python`, and means the one that has the packages."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
