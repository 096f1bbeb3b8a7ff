"""Processes that must not outlive the one that started them."""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import psutil

from pipeline.common.errors import UserError

# A process by its number and when it started: numbers are given again, and every container has a 1.
_MARK = re.compile(r"(\d+) (\d+\.\d+)")
LOOKS_S = 0.2  # between two looks at whether the parent still lives
_ENDING_S = 5.0


def end_with_parent(pid: int | None = None) -> None:
    """Have this process, and all that it starts, end when its parent does (or process `pid`), however that ends.

    Every process that the pipeline starts calls this first. A process that the parent's end leaves half of its work
    to would write beside whoever starts the same work again.
    """
    if pid is None:
        starter = multiprocessing.parent_process()
        pid = os.getppid() if starter is None else starter.pid
    try:
        parent = psutil.Process(pid)
    except psutil.NoSuchProcess:
        os._exit(1)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: psutil.Process) -> None:
    while lives(parent):
        time.sleep(LOOKS_S)
    end_descendants()
    os._exit(1)


def path_of_this_python() -> str:
    """PATH with this Python first: dvc.yaml says `python`, and means the one that has the packages."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def mark() -> str:
    """What `marked_ancestor` knows this process by, for a variable in the environment of what it starts."""
    return f"{os.getpid()} {started(psutil.Process())}"


def started(process: psutil.Process) -> str:
    """When a process was started, on a clock that nobody sets (Linux: seconds since the machine's start, to 0.01)."""
    return f"{process._ident[1]:.2f}"  # psutil's own identity of a process, which it does not give out


def marked_ancestor(marked: str) -> int | None:
    """The number of the process that `mark` marked, if this one descends from it; a variable may be left over."""
    if not (parts := _MARK.fullmatch(marked)):
        return None
    same = (it for it in psutil.Process().parents() if it.pid == int(parts[1]))
    return next((it.pid for it in same if started(it) == parts[2]), None)


def lives(process: psutil.Process) -> bool:
    """Whether it is still this process under its number, and not one that has ended and waits to be collected."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_descendants(patience_s: float = 0.0) -> None:
    """Kill what this process has started, and what that has, after waiting `patience_s` for it to end by itself."""
    descendants = psutil.Process().children(recursive=True)
    _, left = psutil.wait_procs(descendants, timeout=patience_s)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=_ENDING_S)


def start_kept(command: list[str], log: IO[bytes], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a program that knows nothing of `end_with_parent`, and have it end with this process all the same.

    What is returned is a process that keeps it: at `terminate()`, when this process ends, and when the program itself
    does, everything that the program has started ends too. stdout and stderr go to `log`.
    """
    keeper = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); from {__name__} import _keep; "
    return subprocess.Popen(
        [sys.executable, "-c", f"{keeper}sys.exit(_keep({os.getpid()}, sys.argv[1:]))", *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        start_new_session=True,  # Ctrl-C is for this process, which then ends that one when it has no use for it
    )


def _keep(parent: int, command: list[str]) -> int:
    """Run `command` and return its exit status, 128 and more for a signal, as shells do."""
    end_with_parent(parent)
    process = subprocess.Popen(command, process_group=0)

    def stop(*_: object) -> None:
        process.terminate()
        end_descendants(_ENDING_S)
        os._exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    status = process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it has left behind has no parent any more, but its group
    return status if status >= 0 else 128 - status


class Alone:
    """A process that runs `work(connection, *arguments)`, and this end of the connection."""

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(work, theirs, *arguments))
        self._process.start()
        theirs.close()

    def receive(self) -> Any:
        """What the process sends next. Raises its UserError, or RuntimeError with its traceback or exit status."""
        try:
            kind, value = self.connection.recv()
        except EOFError as error:
            self._process.join()
            raise RuntimeError(
                f"a process of the vllm backend ended with status {self._process.exitcode} "
                "(-9: killed, most often for want of host memory); what it answered is kept."
            ) from error
        if kind == "user error":
            raise UserError(value)
        if kind == "failed":
            raise RuntimeError(f"in a process of the vllm backend:\n{value}")
        return value

    def end(self) -> None:
        """Wait for the process to end by itself, a while; then end it."""
        self.connection.close()
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def send(connection: Connection, value: Any) -> None:
    """Send `value` to the process that started this one."""
    connection.send(("value", value))


def call_alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`, in a process of its own."""
    process = Alone(_call, function, *arguments)
    try:
        return process.receive()
    finally:
        process.end()


def _call(connection: Connection, function: Callable[..., Any], *arguments: Any) -> None:
    send(connection, function(*arguments))


def _run(work: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    end_with_parent()
    try:
        work(connection, *arguments)
    except (EOFError, BrokenPipeError):
        # The other side is done with this process.
        pass
    except UserError as error:
        connection.send(("user error", str(error)))
    except BaseException:
        connection.send(("failed", traceback.format_exc()))
