"""Commands of this project, each in a process of its own, without the 10 seconds of imports that each would need.

They are forked from one process that has imported what stages import, and has done nothing yet.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.checkout import REPOSITORY

_SERVER = """
import json, os, sys
import bitsandbytes, pipeline.models.loading, pipeline.training.sft
from pipeline.__main__ import main
for line in sys.stdin:
    order = json.loads(line)
    if not (child := os.fork()):
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        status = 70
        try:
            exec(order["first"], {})
            status = main(order["command"])
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Command(subprocess.Popen[str]):
    """What answers orders, as if it were the process of the command that it was ordered last."""

    child = 0

    def kill_command(self) -> None:
        """SIGKILL for the command; its end is waited for."""
        os.kill(self.child, signal.SIGKILL)
        assert self.status() == -signal.SIGKILL

    def status(self) -> int:
        """The command's exit status, once it has ended."""
        assert self.stdout is not None
        ended, self.child = int(self.stdout.readline()), 0
        return ended


class Warm:
    """Commands in `folder`, one after another; `names` are added to the environment."""

    def __init__(self, folder: Path, **names: str) -> None:
        self.folder = folder
        self.server = Command(
            [sys.executable, "-c", _SERVER], cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **names},
        )  # fmt: skip

    def start(self, *command: str, first: str = "") -> Command:
        """Start a command, once it has executed the Python text `first`."""
        assert self.server.stdin is not None and self.server.stdout is not None
        print(json.dumps({"command": command, "first": first}), file=self.server.stdin, flush=True)
        self.server.child = int(self.server.stdout.readline())
        return self.server

    def __call__(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        status = self.start(*command).status()
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(command, status, out, err)


@contextlib.contextmanager
def warm(folder: Path, **names: str) -> Iterator[Warm]:
    """A `Warm` that ends with the block, and a command that has not ended by then with it."""
    commands = Warm(folder, **names)
    try:
        yield commands
    finally:
        if commands.server.child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(commands.server.child, signal.SIGKILL)
        commands.server.kill()
        commands.server.wait()
