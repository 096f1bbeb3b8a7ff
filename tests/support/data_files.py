"""The upstream files for tests, unpacked once a session from ../shared beside the checkout."""

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"


def shared(name: str) -> Path:
    """A file of ../shared/data; skips the test where it is absent."""
    if not (SHARED / name).is_file():
        pytest.skip(f"{SHARED / name} is not there: the upstream files are not part of the repository")
    return SHARED / name


@functools.cache
def _unpacked() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="emoe-upstream-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run(["bash", str(SHARED / "unpack"), str(folder)], check=True)
    return folder


def upstream() -> Path:
    """The folder of real upstream files, read-only by convention; skips the test where it is absent."""
    shared("upstream.tar.xz")
    return _unpacked()
