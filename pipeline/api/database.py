"""The reply cache's SQLite file: opened, brought up to date, written in transactions, its failures explained."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from pipeline.common.errors import UserError

# 1 had no accounts; 2 kept faults as replies and opened accounts late, and knew no claims and turns.
_VERSION = 3
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
CREATE TABLE IF NOT EXISTS claims (
    key TEXT PRIMARY KEY,
    owner TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS turns (
    endpoint TEXT PRIMARY KEY,
    next REAL NOT NULL
) WITHOUT ROWID;
INSERT OR IGNORE INTO spending SELECT judge, CAST(SUM(usd) * 1e9 AS INTEGER) FROM replies GROUP BY judge;
DELETE FROM replies WHERE finish IN ('error', 'insufficient_system_resource', 'content_filter')
    OR (text = '' AND finish != 'length');
"""
_LOCK_WAIT_S = 60.0
_REASONS = {
    sqlite3.SQLITE_FULL: "cannot grow because the disk is full; free some space",
    sqlite3.SQLITE_READONLY: "cannot be written because it, or its folder, is read-only; make both writable",
    sqlite3.SQLITE_BUSY: "has been locked by another program for too long; stop that program",
    sqlite3.SQLITE_CORRUPT: "is damaged; restore it from a copy, or save its replies with `sqlite3 FILE .recover`",
    sqlite3.SQLITE_NOTADB: "cannot be read because it is no SQLite file; move it away",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; look at its folder's permissions",
}


class DiskFullError(UserError):
    """Nothing can be written for want of space."""


class Database:
    """One connection to the file. Raises UserError, in one sentence, when SQLite fails.

    WAL mode: readers and writers of several processes do not block each other for long, and a transaction that was
    committed survives a killed process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # One process at a time: switching to WAL does not wait for another that does the same.
            with FileLock(path.with_suffix(".lock")), self.explained():
                self.connection = sqlite3.connect(path, timeout=_LOCK_WAIT_S, isolation_level=None)
                self.connection.execute("PRAGMA journal_mode=WAL")
                self.connection.execute("PRAGMA synchronous=NORMAL")
                self._prepare()
        except OSError as error:
            raise UserError(f"reply cache {path} cannot be opened: {error.strerror}.") from None

    def _prepare(self) -> None:
        (version,) = self.connection.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise UserError(f"reply cache {self.path} has format {version}, this code reads {_VERSION}.")
        if version < _VERSION:
            self.connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn SQLite's failures into UserError."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code is None:  # not SQLite's failure but a call that is wrong
                raise
            # The low byte of an extended code says what went wrong, the others where.
            reason = _REASONS.get(code & 0xFF, f"cannot be used ({error})")
            kind = DiskFullError if code & 0xFF == sqlite3.SQLITE_FULL else UserError
            raise kind(f"reply cache {self.path} {reason}, then run again; the replies it holds are kept.") from None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything in the block is written, or nothing is."""
        db = self.connection
        with self.explained():
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # SQLite rolls some failures back by itself
                    db.execute("ROLLBACK")
                raise
