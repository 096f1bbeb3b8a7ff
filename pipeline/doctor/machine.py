"""Doctor's checks of the machine: Python, cores, memory, disk, GPUs, git, the installed packages."""

from __future__ import annotations  # on an old Python too

import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.common.git import changed_sources, git
from pipeline.common.machine import AMPERE, Gpus, cores, cpu, memory_bytes
from pipeline.doctor.check import GB, ROOT, Check

# README.md: what the toy study needs, set-up included. The environment alone is 2.1 GB of it (measured).
MEMORY_GB, DISK_GB, DISK_AFTER_SETUP_GB = 4.0, 3.0, 1.0
# The least driver branch for each CUDA (NVIDIA, "CUDA Compatibility", minor version compatibility).
DRIVERS = {12: 525, 13: 580}
CUDA = 13  # of PyPI's torch 2.13.0
LOCKS = {"CPU": ("locks/cpu.txt", "locks/torch.txt"), "GPU": ("locks/gpu.txt",)}
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)\s*(?:;\s*([^\\]*?))?\s*\\?$", re.MULTILINE)


def not_looked_at(reason: str) -> Check:
    """The study's line before set-up, or after half of one."""
    return Check("warn", "study", f"not looked at: it {reason}", "run `make setup`, then `make doctor` again")


def check_python() -> Check:
    """The Python that runs this, which is the environment's after set-up."""
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Check("ok", "Python", f"{version} ({sys.executable})")
    return Check("fail", "Python", version, "install 3.11 or 3.12, then `make setup PYTHON=/path/to/python3.12`")


def check_cores() -> Check:
    """Cores that may be used."""
    count = cores()
    if count > 1:
        return Check("ok", "CPU", f"{count} cores, {cpu()}")
    return Check("warn", "CPU", f"1 core, {cpu()}", "more cores work on several bases and runs side by side")


def check_memory() -> Check:
    """Main memory, within a container's limit."""
    total = memory_bytes() / GB
    if total >= MEMORY_GB:
        return Check("ok", "memory", f"{total:.1f} GB")
    level = "fail" if total < MEMORY_GB / 2 else "warn"
    return Check(level, "memory", f"{total:.1f} GB", f"the toy study was made for {MEMORY_GB:g} GB; give it more")


def check_disk() -> Check:
    """Free space where the repository is, and whether it can be written to."""
    free = shutil.disk_usage(ROOT).free / GB
    needed = DISK_AFTER_SETUP_GB if installed("torch") else DISK_GB
    if not os.access(ROOT, os.W_OK):
        return Check("fail", "disk", f"{ROOT} cannot be written to", "make it writable, or clone into another folder")
    if free >= needed:
        return Check("ok", "disk", f"{free:.1f} GB free")
    return Check("fail", "disk", f"{free:.1f} GB free, {needed:g} GB needed", "free some space, or clone elsewhere")


def check_gpus(seen: Gpus, needed: bool | None) -> Iterator[Check]:
    """The GPUs and their driver; `needed` is None where the study could not be looked at."""
    if not seen.found:
        if needed:
            remedy = "use a machine with an NVIDIA GPU, or `make reproduce STUDY=toy`, which needs none"
            yield Check("fail", "GPU", f"none found: {seen.trouble}", remedy)
        elif needed is None:
            remedy = "study toy needs none; moe needs one of compute capability 8.0 or more"
            yield Check("warn", "GPU", f"none found: {seen.trouble}", remedy)
        else:
            yield Check("ok", "GPU", "none found, and none is needed")
        return
    for gpu in seen.found:
        memory = "memory unknown" if gpu.memory is None else f"{gpu.memory / 2**30:.1f} GiB"
        found = f"{gpu.name}, compute capability {gpu.capability}, {memory}"
        if gpu.capability >= AMPERE or needed is False:
            yield Check("ok", "GPU", found)
        else:
            remedy = "bfloat16 needs 8.0 or more (Ampere and newer): study moe cannot use this one"
            other = any(it.capability >= AMPERE for it in seen.found)
            yield Check("fail" if needed and not other else "warn", "GPU", found, remedy)
    cuda = locked_cuda()
    least, driver = DRIVERS[cuda], seen.found[0].driver
    branch = re.match(r"\d+", driver)
    if branch and int(branch[0]) >= least:
        yield Check("ok", "driver", f"{driver}, enough for the lock's CUDA {cuda}")
    else:
        remedy = f"install NVIDIA driver {least} or newer"
        yield Check("fail" if needed else "warn", "driver", f"{driver}; the lock's CUDA {cuda} needs {least}", remedy)


def locked_cuda() -> int:
    """The major version of CUDA that the GPU lock installs."""
    for name in LOCKS["GPU"]:
        path = ROOT / name
        if path.exists() and (pin := re.search(r"^nvidia-cuda-runtime\S*?==(\d+)", path.read_text(), re.MULTILINE)):
            return int(pin[1])
    return CUDA


def check_git() -> Iterator[Check]:
    """Git, the repository, who owns it, and whether it is as committed. DVC works in git repositories alone."""
    if shutil.which("git") is None:
        yield Check("fail", "git", "not here", "install git (Debian: apt install git)")
        return
    head = git("rev-parse", "--verify", "--short", "HEAD", folder=ROOT)
    if "dubious ownership" in head.stderr:
        remedy = f"git config --global --add safe.directory {ROOT}"
        yield Check("fail", "git", f"{ROOT} belongs to another user, so git and DVC refuse it", remedy)
    elif git("rev-parse", "--git-dir", folder=ROOT).returncode:
        yield Check("fail", "git", f"{ROOT} is no git repository", "clone the repository: DVC needs its history")
    elif head.returncode:
        yield Check("fail", "git", "there is no commit yet", "git add -A && git commit: `dvc exp run` starts from one")
    else:
        changed = changed_sources(ROOT)
        if changed:
            found = f"{head.stdout.strip()}, and files that results depend on have changed: {len(changed)}"
            yield Check("warn", "git", found, "results are then of no commit; provenance.json will name the files")
        else:
            yield Check("ok", "git", f"{head.stdout.strip()}, nothing changed")


def check_environment(*, needs_gpu: bool) -> Check:
    """The installed packages against the lock that they match best, which must be the GPU's where one is needed."""
    if installed("torch") is None:
        remedy = "`make setup` (`make reproduce` and `make test` do it by themselves)"
        return Check("warn", "packages", "torch is not installed: the environment is not set up yet", remedy)
    best: tuple[list[str], str, int] | None = None
    for kind, names in LOCKS.items():
        if not all((ROOT / name).exists() for name in names):
            continue
        pins = dict(pin for name in names for pin in locked(ROOT / name))
        wrong = []
        for package, pinned in sorted(pins.items()):
            found = installed(package) or "missing"
            if found.partition("+")[0] != pinned.partition("+")[0]:
                wrong.append(f"{package} {found} (locked {pinned})")
        if best is None or len(wrong) < len(best[0]):
            best = wrong, kind, len(pins)
    if best is None:
        return Check("fail", "packages", "locks/ has no lock", "restore it: git checkout -- locks")
    wrong, kind, count = best
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        return Check("fail", "packages", f"not those of the {kind} lock: {shown}", "rm .venv/ready && make setup")
    if needs_gpu and kind != "GPU":
        remedy = "on the machine with the GPU: make setup PYTHON=/path/to/python3.12"
        return Check("fail", "packages", f"those of the {kind} lock, which cannot do this study", remedy)
    return Check("ok", "packages", f"all {count} are those of the {kind} lock")


def installed(package: str) -> str | None:
    """The version of an installed package, None where it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def locked(path: Path) -> list[tuple[str, str]]:
    """(package, version) of a lock's pins that are for this Python and this system."""
    from packaging.markers import Marker

    text = path.read_text(encoding="utf-8")
    return [(name, pinned) for name, pinned, marker in _PIN.findall(text) if not marker or Marker(marker).evaluate()]
