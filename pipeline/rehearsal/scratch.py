"""A copy of the checkout to rehearse in, and stages run there through DVC, with their time and peak memory."""

import contextlib
import os
import re
import resource
import shutil
import signal
import statistics
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
POLL_S = 0.2
# Of `verify`: what it says of the numbers, which mean nothing here, is no failure.
VERDICTS = (0, 1, 3)
PLANNED = re.compile(r"predicted peak ([\d.]+) GiB.*context and slack ([\d.]+)")
COUNTS = re.compile(r"^(VmHWM|RssAnon):\s+(\d+) kB", re.M)
# The scratch checkout's own Hugging Face cache.
CACHE = "hf"
IDENTITY = ("-c", "user.name=rehearsal", "-c", "user.email=rehearsal@localhost")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One stage: seconds in all, peak of one process's memory and of the GPU's, in bytes.

    cpu_seconds: of its processes, DVC's included, without those of one that was killed. own: as `host`, without what is
    read from files that are mapped into memory. predicted: by the plan that the stage printed, on the GPU;
    predicted_slack: what of it is for CUDA's own use; None where it printed none. step_seconds: between two
    optimizer steps of a training, a checkpoint included; None where no two were seen. resumed: whether it was killed
    after its first checkpoint, and run again.
    """

    stage: str
    seconds: float
    cpu_seconds: float
    host: int
    own: int
    gpu: int | None
    predicted: float | None = None
    predicted_slack: float | None = None
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
    """Make the folder a repository: DVC works in those alone. Checkpoints (gigabytes) are not added to it."""
    for command in (["init", "-q"], ["add", "-A", "--", ".", f":!{CACHE}"], [*IDENTITY, "commit", "-qm", "rehearsal"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)


class Scratch:
    """A scratch checkout, its own Hugging Face cache beside it, nothing fetched."""

    def __init__(self, folder: Path):
        self.folder = folder
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        own = {"HF_HOME": str(folder / CACHE), "HF_HUB_OFFLINE": "1", "DVC_NO_ANALYTICS": "1", "PATH": path}
        self.log = folder / "rehearsal.log"
        self.environment = os.environ | own | {"PYTHONPATH": str(folder), "TOKENIZERS_PARALLELISM": "false"}

    def stage(self, name: str, *, kill: bool = False) -> Measured:
        """Run one stage by `dvc repro`; kill: end it by force after its first checkpoint, and run it again.

        Raises UserError with the end of what it said when it fails.
        """
        began, used, peaks, killed = time.monotonic(), _cpu_seconds(), [], False
        said = self.log.stat().st_size if self.log.exists() else 0
        if kill:
            killed, *peak = self._run(name, until=1)
            peaks.append(peak)
        steps: dict[tuple[str, int], float] = {}
        with _gpu_peak() as gpu:
            _, *peak = self._run(name, steps=steps)
        peaks.append(peak)
        plans = PLANNED.findall(self.log.read_bytes()[said:].decode(errors="replace"))
        predicted, slack = [float(size) * GIB for size in plans[-1]] if plans else (None, None)
        return Measured(
            stage=name,
            seconds=round(time.monotonic() - began, 1),
            cpu_seconds=round(_cpu_seconds() - used, 1),
            host=max(host for host, _ in peaks),
            own=max(own for _, own in peaks),
            gpu=gpu[0] if gpu else None,
            predicted=predicted,
            predicted_slack=slack,
            step_seconds=between_steps(steps),
            resumed=killed,
        )

    def _run(
        self, name: str, *, until: int | None = None, steps: dict[tuple[str, int], float] | None = None
    ) -> tuple[bool, int, int]:
        """Whether it was killed, and the largest memory that one process of it had, with mapped files and without."""
        command = [sys.executable, "-m", "dvc", "repro", "--single-item", name]
        began = time.time()
        with self.log.open("ab") as stream:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=stream, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        host = own = 0
        while process.poll() is None:
            found = memory_of(process.pid)
            host, own = max(host, found[0]), max(own, found[1])
            for mark in self.folder.glob(".cache/checkpoints/*/checkpoint-*"):
                step = int(mark.name.rpartition("-")[2]) if mark.name.rpartition("-")[2].isdigit() else 0
                written = _written(mark / "trainer_state.json")
                if steps is not None and written is not None and written > began:
                    steps[str(mark.parent), step] = written
                if until is not None and step >= until and written is not None:
                    time.sleep(2 * POLL_S)
                    os.killpg(process.pid, signal.SIGKILL)
                    until = None
            time.sleep(POLL_S)
        killed = process.returncode == -signal.SIGKILL
        if killed:
            # Of a killed DVC, in a checkout where no other is.
            for left in (".dvc/tmp/rwlock", ".dvc/tmp/rwlock.lock", ".dvc/tmp/lock"):
                (self.folder / left).unlink(missing_ok=True)
        elif process.returncode:
            words = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
            raise UserError(
                f"the rehearsal stopped at {name}; the whole output is in {self.log}. Its end:\n" + "\n".join(words)
            )
        return killed, host, own

    def imports(self, *modules: str) -> int:
        """Bytes, without mapped files, of a process that has imported these modules and done nothing."""
        done = "; ".join(f"import {module}" for module in modules)
        code = f"{done}; import os; from pipeline.rehearsal.scratch import memory_of; print(memory_of(os.getpid())[1])"
        said = subprocess.run([sys.executable, "-c", code], cwd=self.folder, env=self.environment, capture_output=True)
        return int(said.stdout.split()[-1])

    def command(self, *arguments: str, module: str = "pipeline") -> str:
        """Run a command of the pipeline in the scratch checkout and return what it printed. Raises UserError."""
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], cwd=self.folder, env=self.environment, text=True,
            capture_output=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode not in VERDICTS or "Traceback" in done.stderr:
            raise UserError(f"the rehearsal stopped at {' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
        return done.stdout


def between_steps(written: dict[tuple[str, int], float]) -> float | None:
    """Seconds from a step's checkpoint to the next one's, the median of those seen; None where no two were.

    written: (the folder of a seed's checkpoints, step) -> when.
    """
    gaps = [
        when - written[folder, step - 1] for (folder, step), when in written.items() if (folder, step - 1) in written
    ]
    return round(statistics.median(gaps), 2) if gaps else None


def _cpu_seconds() -> float:
    """What this process's children have taken that are done, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _written(path: Path) -> float | None:
    """When a file was written, None while there is none; it may be removed at any moment."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return None


def memory_of(pid: int) -> tuple[int, int]:
    """The most memory that the process, or one below it, has had so far, and what one has now without mapped files.

    In bytes, by the kernel's own counts of each. What `wait4` says would do for the first, but that it counts what this
    process had when it started the other.
    """
    peak = own = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        whole = psutil.Process(pid)
        for process in [whole, *whole.children(recursive=True)]:
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8", errors="replace")
                counts = {
                    name: 1024 * int(size) for name, size in re.findall(r"^(VmHWM|RssAnon):\s+(\d+) kB", text, re.M)
                }
                peak, own = max(peak, counts.get("VmHWM", 0)), max(own, counts.get("RssAnon", 0))
    return peak, own


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
