"""What is known of a fine-tuning job, on disk: one JSON file a job, in the cache folder, outside DVC's outputs.

A file is named by the hash of all that determines the job, and is written before and after each step that cannot be
taken back, so that a killed process knows what it had asked for. The files are the account, too: what they say was
spent, or may be, is what the budget counts.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock

from pipeline.common.errors import UserError
from pipeline.common.files import read_json, sha256_json, write_json
from pipeline.common.settings import Settings, build

FOLDER = "fine_tuning"
# Nothing is asked for in the first two; in `asking` a job may exist that we were not told of.
Phase = Literal["new", "uploaded", "asking", "created", "succeeded", "failed"]
_NOTHING_SPENT = ("new", "uploaded")
_STATE = re.compile(r"[0-9a-f]{64}\.json")
_LEFTOVER = re.compile(r"\.[0-9a-f]{64}\.json\..+")  # of a write that a kill cut short


class Order(Settings):
    """What determines a fine-tuning job.

    endpoint: where it is asked for. start: the model to fine-tune. file_sha256: of the training file.
    """

    endpoint: str
    start: str
    file_sha256: str
    epochs: int
    batch: int
    learning_rate_multiplier: float
    seed: int

    @property
    def key(self) -> str:
        """The hash of all of it."""
        return sha256_json(self.model_dump())


class State(Settings):
    """How far a job is.

    account: whose budget it is on. estimated_usd: what it was thought to cost. usd: what it cost, None until that is
    known. file, job: the API's ids. model: the fine-tuned model. reason: why it failed, in the API's words.
    """

    order: Order
    account: str
    estimated_usd: float
    phase: Phase = "new"
    file: str | None = None
    job: str | None = None
    model: str | None = None
    trained_tokens: int | None = None
    usd: float | None = None
    reason: str | None = None


class States:
    """The states of all jobs in a cache folder."""

    def __init__(self, cache: Path) -> None:
        self._folder = cache / FOLDER

    def path(self, order: Order) -> Path:
        """Where the order's state is kept."""
        return self._folder / f"{order.key}.json"

    def load(self, order: Order) -> State | None:
        """The order's state, None if it was never begun. Raises UserError when the file is damaged."""
        path = self.path(order)
        if not path.exists():
            return None
        state = build(State, read_json(path), str(path))
        if state.order != order:
            raise UserError(f"{path} describes another job than its name says; move it away and look at it.")
        return state

    def save(self, state: State) -> None:
        """Write the state; it is on disk when this returns."""
        write_json(self.path(state.order), state.model_dump())

    @contextmanager
    def hold(self, order: Order) -> Iterator[None]:
        """Hold the order: a second process with the same one waits."""
        with self._locked(f"{order.key}.lock"):
            for path in self._folder.iterdir():
                if _LEFTOVER.fullmatch(path.name) and path.name.startswith(f".{order.key}."):
                    path.unlink(missing_ok=True)
            yield

    @contextmanager
    def account(self) -> Iterator[None]:
        """Hold the account: nobody else's job is begun meanwhile."""
        with self._locked("account.lock"):
            yield

    def spent_usd(self, account: str, but: Order) -> float:
        """What other jobs on the account have cost; those that are not over count as estimated."""
        total = 0.0
        for path in sorted(self._folder.iterdir() if self._folder.is_dir() else ()):
            if not _STATE.fullmatch(path.name):
                continue
            state = build(State, read_json(path), str(path))
            if state.account == account and state.order != but and state.phase not in _NOTHING_SPENT:
                total += state.estimated_usd if state.usd is None else state.usd
        return total

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._folder / name)
            lock.acquire()
        except OSError as error:
            raise UserError(f"cannot use {self._folder}: {error.strerror}.") from None
        try:
            yield
        finally:
            lock.release()
