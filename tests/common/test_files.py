"""Files appear whole or not at all: file systems that cannot fsync or chmod, writers that were killed, full disks."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_path, write_text

REPOSITORY = Path(__file__).parents[2]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_fsync_and_chmod_is_written_to(tmp_path, monkeypatch, code):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(os, "chmod", refuse)
    write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "new" and names(tmp_path) == ["a.json"]


def test_a_folder_that_cannot_be_synced_is_no_failure_after_the_file_is_replaced(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve() == tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "new"


def test_a_disk_that_fills_up_leaves_the_old_file_and_says_so(tmp_path, monkeypatch):
    write_text(tmp_path / "a.json", "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.json: No space left on device. Nothing was replaced"):
        write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old" and names(tmp_path) == ["a.json"]


def test_what_killed_writers_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from pipeline.common.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as file: file.write_text('half'); os.kill(os.getpid(), 9)"
    )
    for name in ("a[1].json", "other.json"):
        command = [sys.executable, "-c", script, str(tmp_path / name)]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
        assert done.returncode == -9
    assert len(names(tmp_path)) == 2
    alive = tmp_path / f".a[1].json.{os.getppid()}.tmp.json"
    alive.touch()
    with atomic_path(tmp_path / "a[1].json") as file:
        file.write_text("whole")
    left = names(tmp_path)
    assert "a[1].json" in left and alive.name in left and len(left) == 3
