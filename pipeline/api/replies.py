"""The verdict cache: every reply a judge ever gave, in one SQLite file, so that none is paid for twice.

The same file keeps what each judge has cost, so that a budget holds across all processes that share it.
Money is in whole nano-dollars there: what is set aside and taken back leaves no rounding behind.
"""

import fcntl
import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.api.completions import Reply
from pipeline.common.errors import UserError

_VERSION = 2  # 1 had no accounts
_NANO = 1_000_000_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY,
    judge TEXT NOT NULL,
    text TEXT NOT NULL,
    finish TEXT NOT NULL,
    top_logprobs TEXT,
    model TEXT NOT NULL,
    fingerprint TEXT,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    usd REAL NOT NULL,
    seconds REAL NOT NULL,
    created TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batched (
    key TEXT PRIMARY KEY,
    judge TEXT NOT NULL,
    batch TEXT NOT NULL,
    reserved_nano_usd INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spending (
    judge TEXT PRIMARY KEY,
    nano_usd INTEGER NOT NULL
) WITHOUT ROWID;
"""
_INSERT_REPLY = """
INSERT OR IGNORE INTO replies
    (key, judge, text, finish, top_logprobs, model, fingerprint, prompt_tokens, completion_tokens, usd, seconds)
VALUES (?,?,?,?,?,?,?,?,?,?,?)
"""
_COLUMNS = "text, finish, top_logprobs, model, fingerprint, prompt_tokens, completion_tokens, usd, seconds"
_LOCK_WAIT_S = 60.0
_REASONS = {
    sqlite3.SQLITE_FULL: "cannot grow because the disk is full; free some space",
    sqlite3.SQLITE_READONLY: "cannot be written because it, or its folder, is read-only; make both writable",
    sqlite3.SQLITE_BUSY: "has been locked by another program for too long; stop that program",
    sqlite3.SQLITE_CORRUPT: "is damaged; restore it from a copy, or save its replies with `sqlite3 FILE .recover`",
    sqlite3.SQLITE_NOTADB: "cannot be read because it is no SQLite file; move it away",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; look at its folder's permissions",
}


class VerdictCache:
    """Replies by request key, and what every judge has cost.

    WAL mode: readers and writers of several processes do not block each other for long, and a
    transaction that was committed survives a killed process. Methods commit before they return. Use as a
    context manager. Every method raises UserError, in one sentence, when SQLite fails (disk full, read-only,
    locked, damaged); what was committed before is kept then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # One process at a time: switching to WAL does not wait for another that does the same.
            with path.with_suffix(".lock").open("w") as lock, self._explained():
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._db = sqlite3.connect(path, timeout=_LOCK_WAIT_S, isolation_level=None)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._prepare()
        except OSError as error:
            raise UserError(f"verdict cache {path} cannot be opened: {error.strerror}.") from None

    def _prepare(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise UserError(f"verdict cache {self.path} has format {version}, this code reads {_VERSION}.")
        if version < _VERSION:
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={_VERSION}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code is None:  # not SQLite's failure but a call that is wrong
                raise
            # The low byte of an extended code says what went wrong, the others where.
            reason = _REASONS.get(code & 0xFF, f"cannot be used ({error})")
            raise UserError(
                f"verdict cache {self.path} {reason}, then run again; the replies it holds are kept."
            ) from None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite rolls some failures back by itself
                    self._db.execute("ROLLBACK")
                raise

    def get(self, keys: Iterable[str]) -> dict[str, Reply]:
        """The replies that are there, by key."""
        found = {}
        with self._explained(), closing(self._db.cursor()) as cursor:
            for key in keys:
                row = cursor.execute(f"SELECT {_COLUMNS} FROM replies WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[key] = _reply(row)
        return found

    def put(self, judge: str, key: str, reply: Reply, reserved_usd: float = 0.0) -> None:
        """Store a reply, and count what it cost in place of what was set aside for it.

        A key that is there stays as it is: the first reply counts, both were paid for.
        """
        with self._transaction() as db:
            db.execute(_INSERT_REPLY, (key, judge, *_row(reply)))
            self._spend(judge, _price(reply, _nano(reserved_usd)) - _nano(reserved_usd))

    def reserve(self, judge: str, most_usd: Iterable[float], cap_usd: float) -> int:
        """Set aside what requests may cost at most, as many of them, from the first, as fit under the cap.

        Returns their number. The cap is on what the judge has cost and what is set aside, by any process;
        what a killed process had set aside stays so, since its requests may be charged.
        """
        with self._transaction():
            left = math.floor(cap_usd * _NANO) - self._spent(judge)
            count = total = 0
            for most in map(_nano, most_usd):
                if total + most > left:
                    break
                count += 1
                total += most
            self._spend(judge, total)
        return count

    def release(self, judge: str, most_usd: Iterable[float]) -> None:
        """Take back what was set aside for requests that cost nothing."""
        with self._transaction():
            self._spend(judge, -sum(map(_nano, most_usd)))

    def spent_usd(self, judge: str) -> float:
        """What `judge` has cost so far, over all runs that used this cache, and what is set aside."""
        with self._transaction():
            return self._spent(judge) / _NANO

    def _spent(self, judge: str) -> int:
        row = self._db.execute("SELECT nano_usd FROM spending WHERE judge = ?", (judge,)).fetchone()
        if row is not None:
            return row[0]
        # A judge's account is opened, with what it has cost, when it is first asked for.
        (usd,) = self._db.execute("SELECT SUM(usd) FROM replies WHERE judge = ?", (judge,)).fetchone()
        self._db.execute("INSERT INTO spending VALUES (?,?)", (judge, _nano(usd or 0.0)))
        return _nano(usd or 0.0)

    def _spend(self, judge: str, nano_usd: int) -> None:
        self._db.execute("UPDATE spending SET nano_usd = nano_usd + ? WHERE judge = ?", (nano_usd, judge))

    def submit(self, judge: str, reserved_usd: Mapping[str, float], batch: str) -> None:
        """Remember that a batch with these keys is on its way, and what was set aside for each.

        `batch` names it here: its input file, which is there before the batch is.
        """
        with self._transaction() as db:
            rows = ((key, judge, batch, _nano(usd)) for key, usd in reserved_usd.items())
            db.executemany("INSERT OR REPLACE INTO batched VALUES (?,?,?,?)", rows)

    def batches(self, keys: Iterable[str]) -> dict[str, str]:
        """Of these keys, those on their way in a batch: its name by key."""
        found = {}
        with self._explained():
            for key in keys:
                if row := self._db.execute("SELECT batch FROM batched WHERE key = ?", (key,)).fetchone():
                    found[key] = row[0]
        return found

    def end_batch(self, judge: str, batch: str, replies: Mapping[str, Reply]) -> tuple[set[str], set[str]]:
        """Store a batch's replies and forget it: its keys that were answered, and those that were not.

        Replies to what was not in the batch are left out. Unanswered keys cost nothing and may be asked again.
        """
        with self._transaction() as db:
            rows = db.execute("DELETE FROM batched WHERE batch = ? RETURNING key, reserved_nano_usd", (batch,))
            reserved: dict[str, int] = dict(rows.fetchall())
            answered = reserved.keys() & replies.keys()
            db.executemany(_INSERT_REPLY, ((key, judge, *_row(replies[key])) for key in sorted(answered)))
            for key, set_aside in reserved.items():
                self._spend(judge, (_price(replies[key], set_aside) if key in answered else 0) - set_aside)
        return answered, reserved.keys() - answered


def _price(reply: Reply, reserved_nano_usd: int) -> int:
    """In nano-dollars; without a token count there is none, and what was set aside is taken for it."""
    return _nano(reply.usd) if reply.prompt_tokens else max(_nano(reply.usd), reserved_nano_usd)


def _nano(usd: float) -> int:
    return math.ceil(usd * _NANO)


def _row(reply: Reply) -> tuple[str | int | float | None, ...]:
    top = None if reply.top_logprobs is None else json.dumps(reply.top_logprobs)
    return (
        reply.text, reply.finish, top, reply.model, reply.fingerprint,
        reply.prompt_tokens, reply.completion_tokens, reply.usd, reply.seconds,
    )  # fmt: skip


def _reply(row: tuple) -> Reply:
    text, finish, top, *rest = row
    pairs = None if top is None else [(token, logprob) for token, logprob in json.loads(top)]
    return Reply(text, finish, pairs, *rest)
