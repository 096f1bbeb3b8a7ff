"""This checkout as git has it. Standard library alone: `make doctor` asks before set-up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# What results depend on; paper_figures/ and dvc.lock are results themselves.
SOURCES = ("pipeline", "locks", "params.yaml", "dvc.yaml", "data.dvc", "pyproject.toml", "Makefile", "Dockerfile")


# What points git at another repository than the one that it is run in.
ELSEWHERE = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX",
)  # fmt: skip


def git(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run git in `folder` (None: here), in English and without taking locks. Raises OSError where there is no git."""
    command = ["git", *(["-C", str(folder)] if folder else []), "--no-optional-locks", *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE} | {"LC_ALL": "C"}
    return subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)


def changed_sources(folder: Path | None = None) -> list[str] | None:
    """The files that results depend on and that are not as committed, sorted; None where git does not say."""
    try:
        done = git("status", "--porcelain", "--", *SOURCES, folder=folder)
    except OSError:
        return None
    return None if done.returncode else sorted(line[3:] for line in done.stdout.splitlines())
