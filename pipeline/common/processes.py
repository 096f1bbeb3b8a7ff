"""Processes that must not outlive the one that started them."""

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from pipeline.common.errors import UserError


def end_with_parent() -> None:
    """Have this process, one of multiprocessing's, end when its parent does, even if that is killed."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


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
