"""What this machine is, asked of the system and of nvidia-smi: no torch, nothing but the standard library."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
# The least compute capability with bfloat16, which every hub model is computed in.
AMPERE = 8.0
_QUERY = "name,compute_cap,memory.total,driver_version"
_ANSWER_S = 30
# The control group's limit, where there is one: version 2, then version 1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi describes it: its memory in bytes (None: not told), its driver's version."""

    name: str
    capability: float
    memory: int | None
    driver: str


@dataclass(frozen=True)
class Gpus:
    """The GPUs there are; where there are none, `trouble` says what nvidia-smi said."""

    found: tuple[Gpu, ...]
    trouble: str


def gpus() -> Gpus:
    """Ask nvidia-smi, in its order of devices. Never raises."""
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_ANSWER_S, errors="replace"
        )
    except FileNotFoundError:
        return Gpus((), "nvidia-smi is not here")
    except (OSError, subprocess.SubprocessError) as error:
        return Gpus((), f"nvidia-smi does not run ({type(error).__name__})")
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        return Gpus((), f"nvidia-smi says: {lines[0][:160]}" if lines else f"nvidia-smi exits with {done.returncode}")
    found = [gpu for line in lines if (gpu := _gpu(line))]
    return Gpus(tuple(found), "" if found else "nvidia-smi names none")


def _gpu(line: str) -> Gpu | None:
    """One line of nvidia-smi's answer; None where it is something else. A name may hold commas."""
    parts = [part.strip() for part in line.rsplit(",", 3)]
    try:
        name, capability, memory, driver = parts
        return Gpu(name, float(capability), int(memory) * MIB if memory.isdigit() else None, driver)
    except ValueError:
        return None


def cpu() -> str:
    """The processor's name, as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(memory_gb: float, most: int) -> int:
    """How many processes of `memory_gb` each this machine's cores and memory carry: 1 to `most`."""
    return max(1, min(cores(), int(memory_bytes() / 1e9 / memory_gb), most))


def memory_bytes() -> int:
    """Memory of this machine, or of the container that this process is in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _LIMITS:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            return min(total, int(text))
    return total
