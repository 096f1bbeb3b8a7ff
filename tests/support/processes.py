"""Processes as a test looks at them: others end while it looks, and nobody may collect what has ended."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import psutil

from pipeline.common.processes import lives
from tests.support.checkout import REPOSITORY

LIMIT_S = 300  # waiting past this is a hang, and fails


class AtWork(Protocol):
    """A process, as subprocess.Popen has it."""

    def poll(self) -> int | None: ...


def until(condition: Callable[[], object], what: str, process: AtWork | None = None) -> None:
    """Wait for a condition; fails where it never comes, or where `process` ends before."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert process is None or process.poll() is None, f"it ended before {what}"
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def until_written(folder: Path, pattern: str, process: AtWork, count: int = 1) -> None:
    """Wait until `count` files of a pattern are there, which `process` writes."""
    until(lambda: len(list(folder.glob(pattern))) >= count, f"{pattern} was there", process)


def ended(processes: Iterable[psutil.Process]) -> bool:
    """Wait until all have ended, collected or not: a container's first process collects nothing."""
    left = list(processes)
    until(lambda: not any(map(lives, left)), f"the end of {left}")
    return True


def commands_below(top: psutil.Process) -> list[list[str]]:
    """The command lines of all that a process has started, and that has not ended meanwhile."""
    found = []
    for process in top.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(process.cmdline())
    return found


_FREEZES = """
import os, signal, sys
from fnmatch import fnmatch

written = set()

def look(event, arguments):
    if len(written) == {count} and all(map(os.path.exists, written)):
        written.clear()
        os.kill(os.getpid(), signal.SIGSTOP)
    elif event in ("open", "os.rename") and fnmatch(str(arguments[event == "os.rename"]), {pattern!r}):
        written.add(str(arguments[event == "os.rename"]))

sys.addaudithook(look)
"""


def freezes(pattern: str, count: int = 1) -> str:
    """Python text that has its process stop (SIGSTOP) once it has written `count` files that fit `pattern`.

    So it is killed there and then, and not where it has come to when a busy machine lets the test look again.
    """
    return _FREEZES.format(pattern=pattern, count=count)


def freezing(folder: Path, pattern: str, count: int = 1) -> dict[str, str]:
    """Variables with which a Python process starts with `freezes`."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(freezes(pattern, count))
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)])}
