"""Commands of this project, each in a process of its own, without the 10 seconds of imports that each would need.

They are forked from one process that has imported what stages import, and has done nothing yet.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.checkout import REPOSITORY
from tests.support.processes import LIMIT_S

_SERVER = """
import json, os, sys
import bitsandbytes, matplotlib.pyplot, pandas, pipeline.models.loading, pipeline.sampling.huggingface
import pipeline.training.sft
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


class Command:
    """A command at work, as far as `subprocess.Popen` is asked here; `answers` says its number, and its end."""

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self.returncode: int | None = None
        self.pid = self._read(LIMIT_S)
        assert self.pid

    def poll(self) -> int | None:
        """Its exit status, None while it is at work."""
        if self.returncode is None:
            self.returncode = self._read(0)
        return self.returncode

    def wait(self) -> int:
        """Its exit status, once it has ended; fails where it never does."""
        if self.returncode is None:
            self.returncode = self._read(LIMIT_S)
        assert self.returncode is not None, "it never ended"
        return self.returncode

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def _read(self, seconds: float) -> int | None:
        if not select.select([self._answers], [], [], seconds)[0]:
            return None
        line = b""
        while not line.endswith(b"\n"):
            line += (byte := os.read(self._answers, 1))
            assert byte, "what starts commands has ended"
        return int(line)


class Warm:
    """Commands in `folder`, one after another; `names` are added to the environment."""

    def __init__(self, folder: Path, **names: str) -> None:
        self.folder = folder
        self.command: Command | None = None
        self.server = subprocess.Popen(
            [sys.executable, "-c", _SERVER], cwd=folder, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **names},
        )  # fmt: skip

    def start(self, *command: str, first: str = "") -> Command:
        """Start a command, once it has executed the Python text `first`."""
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps({"command": command, "first": first}).encode() + b"\n")
        self.command = Command(self.server.stdout.fileno())
        return self.command

    def __call__(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        status = self.start(*command).wait()
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(command, status, out, err)


@contextlib.contextmanager
def warm(folder: Path, **names: str) -> Iterator[Warm]:
    """A `Warm` that ends with the block, and a command that has not ended by then with it."""
    commands = Warm(folder, **names)
    try:
        yield commands
    finally:
        if commands.command and commands.command.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                commands.command.kill()
        commands.server.kill()
        commands.server.wait()
