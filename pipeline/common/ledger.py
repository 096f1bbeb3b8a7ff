"""The ledger: one line when a stage begins and one when it ends, outside all of DVC's outputs."""

import contextlib
import hashlib
import json
import os
import platform
import re
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.common.files import sha256_file
from pipeline.common.git import SOURCES, changed_sources, git
from pipeline.common.machine import cores, cpu, gpus, memory_bytes
from pipeline.common.paths import CACHE

LEDGER = CACHE / "ledger"
PREREGISTRATIONS = "docs/preregistration*.md"
_LIBRARIES = (
    "torch", "transformers", "peft", "trl", "tokenizers", "bitsandbytes", "vllm", "numpy", "openai", "dvc",
)  # fmt: skip
_IMAGE = "EMOE_IMAGE_"  # the Dockerfile's labels, as environment variables


def record(stage: str, work: Callable[[], int | None], removed: Sequence[str] = ()) -> int | None:
    """Do a stage's work, with a line in its ledger before and after; return what the work returns.

    removed: the names of environment variables that the stage was not given (pipeline/common/environment.py). A ledger
    that cannot be written is said on stderr and stops nothing.
    """
    if not re.fullmatch(r"[a-z]+@[A-Za-z0-9_-]+", stage):
        return work()  # no name of params.yaml: the stage itself will say so
    attempt, started = uuid.uuid4().hex, time.monotonic()
    at = datetime.now(UTC).isoformat(timespec="seconds")
    _NOTED.clear()
    begin = {"attempt": attempt, "started": at, "code": code(), "machine": machine(), "removed": list(removed)}
    _append(stage, begin)
    outcome = "failed"
    try:
        status = work()
        outcome = "failed" if status else "done"
    except KeyboardInterrupt:
        outcome = "interrupted"
        raise
    finally:
        seconds = round(time.monotonic() - started, 1)
        _append(stage, {"attempt": attempt, "outcome": outcome, "seconds": seconds, "noted": dict(_NOTED)})
    return status


_NOTED: dict[str, str] = {}


def note(**facts: str) -> None:
    """Have the line that ends this process's stage say these too: what the stage chose, and no parameter says."""
    _NOTED.update(facts)


def path_of(stage: str) -> Path:
    """Where the stage's ledger is. Both stages that write a base down are one command, after which it is named."""
    return LEDGER / f"{stage.replace('pin_api@', 'pin@')}.jsonl"


def add(stage: str, lines: str) -> None:
    """Add what another machine's ledger says of the stage: those of its lines that are not here."""
    path = path_of(stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    here = _lines(path)
    if new := [line for line in lines.splitlines() if line not in here]:
        _write(path, "\n".join(new))


def _append(stage: str, line: dict[str, Any]) -> None:
    try:
        LEDGER.mkdir(parents=True, exist_ok=True)
        _write(path_of(stage), json.dumps(line, sort_keys=True))
    except OSError as error:
        print(f"provenance of {stage} is not recorded: {error.strerror}", file=sys.stderr)


def _write(path: Path, text: str) -> None:
    """Add text as lines of their own.

    One write: a process killed here leaves all of it or nothing. A full disk may leave a part, which a newline before
    the next line ends, and which `read_attempts` passes over.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        cut_short = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" * cut_short + text.encode() + b"\n")
    finally:
        os.close(descriptor)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def read_attempts(stage: str) -> list[dict[str, Any]]:
    """The stage's attempts in order, each one's beginning and end put together; none where there is no ledger.

    Lines that a full disk cut short are passed over.
    """
    attempts: dict[str, dict[str, Any]] = {}
    for text in _lines(path_of(stage)):
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            attempts.setdefault(line["attempt"], {}).update(line)
    return [attempt for attempt in attempts.values() if "started" in attempt]


def code() -> dict[str, Any]:
    """The commit, what differs from it, preregistrations and locks as they are, the image's labels if this is one."""
    changed = changed_sources()
    difference = _git("diff", "HEAD", "--", *SOURCES) if changed else None
    return {
        "commit": (_git("rev-parse", "HEAD") or "").strip() or None,
        "changed": changed,
        "diff_sha256": hashlib.sha256(difference.encode()).hexdigest() if difference else None,
        "preregistrations": {str(path): sha256_file(path) for path in sorted(Path().glob(PREREGISTRATIONS))},
        "locks": {path.name: sha256_file(path) for path in sorted(Path("locks").glob("*.txt"))},
        "image": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_IMAGE)},
    }


def _git(*arguments: str) -> str | None:
    """What git prints, None where it fails (no git, no repository, no commit)."""
    try:
        done = git(*arguments)
    except OSError:
        return None
    return None if done.returncode else done.stdout


def machine() -> dict[str, Any]:
    """What computes: processor, memory, GPUs with their driver, Python and libraries."""
    libraries = {}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            libraries[name] = version(name)
    return {
        "cpu": cpu(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "gpus": [{"name": gpu.name, "driver": gpu.driver, "memory_bytes": gpu.memory} for gpu in gpus().found],
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": libraries,
    }
