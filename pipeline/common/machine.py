"""What this machine is, asked of the system and of nvidia-smi: no torch, nothing but the standard library."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

MIB = 2**20
# The least compute capability with bfloat16, which every hub model is computed in.
AMPERE = 8.0
_QUERY = "name,compute_cap,memory.total,driver_version"
_ANSWER_S = 30
_GROUPS = Path("/proc/self/cgroup")
_GROUP_ROOT = Path("/sys/fs/cgroup")


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
    """The GPUs that CUDA will see: those of nvidia-smi, in its order, but for what CUDA_VISIBLE_DEVICES hides.

    Never raises.
    """
    seen = _installed()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not seen.found:
        return seen
    found = _visible(seen.found, visible)
    return Gpus(found, "" if found else f"CUDA_VISIBLE_DEVICES={visible!r} hides all {len(seen.found)}")


def _visible(found: tuple[Gpu, ...], visible: str) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES names, by number or identifier; as CUDA does, nothing after one that is wrong."""
    identifiers = _ask_nvidia_smi("uuid").stdout.split() if "-" in visible.replace("-1", "") else []
    chosen: list[Gpu] = []
    for name in (name.strip() for name in visible.split(",")):
        if name.isdecimal() and int(name) < len(found):
            chosen.append(found[int(name)])
        elif len(named := [place for place, it in enumerate(identifiers) if name and it.startswith(name)]) == 1:
            chosen.append(found[named[0]])
        else:
            break
    return tuple(chosen)


def _ask_nvidia_smi(query: str) -> subprocess.CompletedProcess[str]:
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_ANSWER_S, errors="replace"
    )


def _installed() -> Gpus:
    try:
        done = _ask_nvidia_smi(_QUERY)
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
    """Memory of this machine, or of the control group (a container, a batch job) that this process is in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *(limit for limit, _ in _group_limits())])


def free_memory_bytes() -> int:
    """Memory that can still be had here: Linux's MemAvailable, within what the control group leaves."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return memory_bytes()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return max(0, min([free, *(limit - used for limit, used in _group_limits())]))


def _group_limits() -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of every control group around this process that limits memory; versions 1 and 2.

    Used memory does not count files that Linux has read and can drop.
    """
    for folder, limit, used, cached in _groups():
        try:
            text = (folder / limit).read_text(encoding="ascii").strip()
            current = int((folder / used).read_text(encoding="ascii"))
            stat = (folder / "memory.stat").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            continue
        if text.isdigit():
            droppable = int(stat[stat.index(cached) + 1]) if cached in stat else 0
            yield int(text), max(0, current - droppable)


def _groups() -> Iterator[tuple[Path, str, str, str]]:
    """The control groups around this process, innermost first, with their files' names."""
    try:
        lines = _GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = {"": ("memory.max", "memory.current", "inactive_file")}
    names["memory"] = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in set(controllers.split(",")) & names.keys():
            root = _GROUP_ROOT / controller
            # In a container the path may be the host's, of which only the root is seen: it is always looked at.
            inner = root / path.lstrip("/")
            for folder in dict.fromkeys([inner, *(up for up in inner.parents if root in up.parents), root]):
                yield folder, *names[controller]


def torch_is_cpu_build() -> bool:
    """Whether the torch that is installed can use no GPU; False before set-up."""
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False
