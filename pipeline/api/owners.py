"""Who holds a claim: a process, for as long as it lives, whatever its number and wherever it runs.

Each owner locks a file of its own, and the system takes the lock back when the process ends, killed or not. Process
numbers would not do: in a container every process has a small one.
"""

import uuid
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.common.errors import UserError


class Owner:
    """This process, as others see it in `folder`, from the first use until `close`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: FileLock | None = None
        self._name = uuid.uuid4().hex

    @property
    def name(self) -> str:
        """What it is called; whoever finds the name can ask whether it lives. Raises UserError where it cannot be."""
        if self._lock is None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._lock = FileLock(self._file(self._name))
                self._lock.acquire()
            except OSError as error:
                raise UserError(f"cannot use {self._folder}: {error.strerror}.") from None
        return self._name

    def lives(self, name: str) -> bool:
        """Whether the owner of that name is still at work."""
        if name == self._name:
            return True
        file = self._file(name)
        if not file.exists():
            return False
        try:
            with FileLock(file, timeout=0):
                file.unlink(missing_ok=True)
        except Timeout:
            return True
        return False

    def close(self) -> None:
        """Be gone."""
        if self._lock is not None:
            self._file(self._name).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.lock"
