"""A copy of the checkout to rehearse in, and stages run there through DVC, with their time and peak memory."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.common.errors import UserError

GIB = 2**30
POLL_S = 0.05
# Of `verify`: what it says of the numbers, which mean nothing here, is no failure.
VERDICTS = (0, 1, 3)
IDENTITY = ("-c", "user.name=rehearsal", "-c", "user.email=rehearsal@localhost")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One stage: seconds in all, peak of one process's memory and of the GPU's, in bytes.

    step_seconds: between the last two optimizer steps of a training, a checkpoint included; None for other stages.
    resumed: whether it was killed after its first checkpoint, and run again.
    """

    stage: str
    seconds: float
    host: int
    gpu: int | None
    step_seconds: float | None = None
    resumed: bool = False


def copy_checkout(root: Path, folder: Path) -> None:
    """The tracked files of the checkout (and new ones that git does not ignore), as they are now, without results."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=root, capture_output=True, check=True
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (root / name).is_file() and not name.startswith(("paper_figures/", "dvc.lock")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    (folder / "data").symlink_to((root / "data").resolve())


def commit(folder: Path) -> None:
    """Make the folder a repository: DVC works in those alone."""
    for command in (["init", "-q"], ["add", "-A"], [*IDENTITY, "commit", "-qm", "rehearsal"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)


class Scratch:
    """A scratch checkout, its own Hugging Face cache beside it, nothing fetched."""

    def __init__(self, folder: Path):
        self.folder = folder
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        own = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "DVC_NO_ANALYTICS": "1", "PATH": path}
        self.environment = os.environ | own | {"PYTHONPATH": str(folder), "TOKENIZERS_PARALLELISM": "false"}

    def stage(self, name: str, *, kill: bool = False) -> Measured:
        """Run one stage by `dvc repro`; kill: end it by force after its first checkpoint, and run it again.

        Raises UserError with the end of what it said when it fails.
        """
        began, peaks, killed = time.monotonic(), [], False
        if kill:
            killed, host = self._run(name, until=1)
            peaks.append(host)
        steps: dict[int, float] = {}
        with _gpu_peak() as gpu:
            _, host = self._run(name, steps=steps)
        ordered = [steps[step] for step in sorted(steps)]
        return Measured(
            stage=name,
            seconds=round(time.monotonic() - began, 1),
            host=max([*peaks, host]),
            gpu=gpu[0] if gpu else None,
            step_seconds=round(ordered[-1] - ordered[-2], 2) if len(ordered) > 1 else None,
            resumed=killed,
        )

    def _run(self, name: str, *, until: int | None = None, steps: dict[int, float] | None = None) -> tuple[bool, int]:
        """Whether it was killed, and the largest memory that one process of it had."""
        command = [sys.executable, "-m", "dvc", "repro", "--single-item", name]
        log = self.folder / "rehearsal.log"
        with log.open("ab") as stream:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=stream, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        host = 0
        while process.poll() is None:
            host = max(host, _peak(process.pid))
            for mark in self.folder.glob(".cache/checkpoints/*/checkpoint-*"):
                step = int(mark.name.rpartition("-")[2]) if mark.name.rpartition("-")[2].isdigit() else 0
                if steps is not None and (mark / "trainer_state.json").exists():
                    steps.setdefault(step, time.monotonic())
                if until is not None and step >= until and (mark / "trainer_state.json").exists():
                    time.sleep(10 * POLL_S)
                    os.killpg(process.pid, signal.SIGKILL)
                    until = None
            time.sleep(POLL_S)
        killed = process.returncode == -signal.SIGKILL
        if killed:
            # Of a killed DVC, in a checkout where no other is.
            for left in (".dvc/tmp/rwlock", ".dvc/tmp/rwlock.lock", ".dvc/tmp/lock"):
                (self.folder / left).unlink(missing_ok=True)
        elif process.returncode:
            words = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
            raise UserError(
                f"the rehearsal stopped at {name}; the whole output is in {log}. Its end:\n" + "\n".join(words)
            )
        return killed, host

    def command(self, *arguments: str) -> str:
        """Run a command of the pipeline in the scratch checkout and return what it printed. Raises UserError."""
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments], cwd=self.folder, env=self.environment, text=True,
            capture_output=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode not in VERDICTS or "Traceback" in done.stderr:
            raise UserError(f"the rehearsal stopped at {' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
        return done.stdout


def _peak(pid: int) -> int:
    """The most memory that the process, or one below it, has had so far, in bytes: the kernel's own mark of each.

    What `wait4` says would do, but for that it counts what this process had when it started the other.
    """
    peak = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        whole = psutil.Process(pid)
        for process in [whole, *whole.children(recursive=True)]:
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8", errors="replace")
                peak = max([peak, *(1024 * int(mark) for mark in re.findall(r"^VmHWM:\s+(\d+) kB", text, re.M))])
    return peak


@contextlib.contextmanager
def _gpu_peak() -> Iterator[list[int]]:
    """The largest use of the first GPU's memory meanwhile, in bytes, once it is over; empty without a GPU."""
    peak: list[int] = []
    over = threading.Event()

    def watch() -> None:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not over.wait(0.5):
            try:
                said = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.split()
            except (OSError, subprocess.SubprocessError):
                return
            if said and said[0].isdigit():
                peak[:] = [max([*peak, int(said[0]) * 2**20])]

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
