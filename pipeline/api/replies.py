"""The reply cache: every reply an endpoint ever gave, in one SQLite file, so that none is paid for twice.

The same file keeps what each judge and model has cost, who is asking for what at this moment, and when the next
request may be sent: budgets, claims and rates hold across all processes that share it.
"""

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.api import accounts
from pipeline.api.accounts import nano
from pipeline.api.completions import Reply, finish_of
from pipeline.api.database import Database
from pipeline.api.owners import Owner

_INSERT = """
INSERT OR IGNORE INTO replies
    (key, judge, text, finish, top_logprobs, model, fingerprint, prompt_tokens, completion_tokens, usd, seconds)
VALUES (?,?,?,?,?,?,?,?,?,?,?)
"""
_COLUMNS = "text, finish, top_logprobs, model, fingerprint, prompt_tokens, completion_tokens, usd, seconds"
_FARTHEST_TURN_S = 3600.0  # a turn that lies farther ahead was given out by a clock that was wrong


class Claim(Enum):
    """What comes of claiming a key: it is ours to ask for, answered already, another process's, or too dear."""

    OURS = "ours"
    ANSWERED = "answered"
    ANOTHERS = "another's"
    TOO_DEAR = "too dear"


class ReplyCache:
    """Replies by request key. Methods commit before they return. Use as a context manager.

    `account` names the judge or model that pays. Every method raises UserError, in one sentence, when SQLite fails
    (disk full, read-only, locked, damaged); what was committed before is kept then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(path)
        self._owner = Owner(path.with_suffix(".owners"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Claims need not be taken back: whoever meets one asks whether its owner lives.
        self._owner.close()
        self._database.connection.close()

    def get(self, keys: Iterable[str]) -> dict[str, Reply]:
        """The replies that are there, by key."""
        found = {}
        with self._database.explained(), closing(self._database.connection.cursor()) as cursor:
            for key in keys:
                row = cursor.execute(f"SELECT {_COLUMNS} FROM replies WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[key] = _reply(row)
        return found

    def claim(self, account: str, key: str, most_usd: float, cap_usd: float | None) -> Claim:
        """Claim a key, so that no other process asks for it, and set aside what the request may cost at most.

        Nothing is set aside unless the key is ours.
        """
        with self._database.transaction() as db:
            if db.execute("SELECT 1 FROM replies WHERE key = ?", (key,)).fetchone():
                return Claim.ANSWERED
            holder = db.execute("SELECT owner FROM claims WHERE key = ?", (key,)).fetchone()
            if holder is not None and not self._is_free(holder[0]):
                return Claim.ANOTHERS
            if not accounts.set_aside(db, account, most_usd, cap_usd):
                return Claim.TOO_DEAR
            if holder != (self._owner.name,):
                db.execute("INSERT OR REPLACE INTO claims VALUES (?,?)", (key, self._owner.name))
        return Claim.OURS

    def _is_free(self, owner: str) -> bool:
        return owner == self._owner.name or not self._owner.lives(owner)

    def put(self, account: str, key: str, reply: Reply, reserved_usd: float = 0.0) -> None:
        """Store a reply, and count what it cost in place of what was set aside for it; the claim ends.

        A key that is there stays as it is: the first reply counts, both were paid for.
        """
        with self._database.transaction() as db:
            db.execute(_INSERT, (key, account, *_row(reply)))
            db.execute("DELETE FROM claims WHERE key = ?", (key,))
            accounts.spend(db, account, _price(reply, nano(reserved_usd)) - nano(reserved_usd))

    def give_back(self, account: str, usd: float) -> None:
        """Take back what was set aside and is not spent."""
        with self._database.transaction() as db:
            accounts.spend(db, account, -nano(usd))

    def give_up(self, key: str) -> None:
        """End our claim on a key that was not answered."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self._owner.name))

    def spent_usd(self, account: str) -> float:
        """What `account` has cost so far, over all runs that used this cache, and what is set aside."""
        with self._database.transaction() as db:
            return accounts.spent(db, account) / accounts.NANO

    def turn_s(self, endpoint: str, seconds: float) -> float:
        """Give a request its turn at an endpoint, `seconds` before the next one's: how long it is until then."""
        with self._database.transaction() as db:
            now = time.time()
            row = db.execute("SELECT next FROM turns WHERE endpoint = ?", (endpoint,)).fetchone()
            turn = row[0] if row is not None and now < row[0] < now + _FARTHEST_TURN_S else now
            db.execute("INSERT OR REPLACE INTO turns VALUES (?,?)", (endpoint, turn + seconds))
        return turn - now

    def correct_turn(self, endpoint: str, seconds: float) -> None:
        """Move the endpoint's next turn: a request has used more, or less, than was thought."""
        with self._database.transaction() as db:
            db.execute("UPDATE turns SET next = next + ? WHERE endpoint = ?", (seconds, endpoint))

    def submit(self, account: str, reserved_usd: Mapping[str, float], batch: str) -> None:
        """Remember that a batch with these keys is on its way, and what was set aside for each; the claims end.

        `batch` names it here: its input file, which is there before the batch is.
        """
        with self._database.transaction() as db:
            rows = ((key, account, batch, nano(usd)) for key, usd in reserved_usd.items())
            db.executemany("INSERT OR REPLACE INTO batched VALUES (?,?,?,?)", rows)
            db.executemany("DELETE FROM claims WHERE key = ?", ((key,) for key in reserved_usd))

    def batches(self, keys: Iterable[str]) -> dict[str, str]:
        """Of these keys, those on their way in a batch: its name by key."""
        found = {}
        with self._database.explained():
            for key in keys:
                query = "SELECT batch FROM batched WHERE key = ?"
                if row := self._database.connection.execute(query, (key,)).fetchone():
                    found[key] = row[0]
        return found

    def end_batch(
        self, account: str, batch: str, replies: Mapping[str, Reply], lost_usd: Mapping[str, float]
    ) -> tuple[set[str], set[str]]:
        """Store a batch's replies and forget it: its keys that were answered, and those that were not.

        Replies to what was not in the batch are left out. Unanswered keys may be asked again; `lost_usd` is what they
        cost all the same, nothing for those it does not name.
        """
        with self._database.transaction() as db:
            rows = db.execute("DELETE FROM batched WHERE batch = ? RETURNING key, reserved_nano_usd", (batch,))
            reserved: dict[str, int] = dict(rows.fetchall())
            answered = reserved.keys() & replies.keys()
            db.executemany(_INSERT, ((key, account, *_row(replies[key])) for key in sorted(answered)))
            for key, most in reserved.items():
                cost = _price(replies[key], most) if key in answered else nano(lost_usd.get(key, 0.0))
                accounts.spend(db, account, cost - most)
        return answered, reserved.keys() - answered


def _price(reply: Reply, reserved_nano_usd: int) -> int:
    """In nano-dollars; without a token count there is none, and what was set aside is taken for it."""
    return nano(reply.usd) if reply.prompt_tokens else max(nano(reply.usd), reserved_nano_usd)


def _row(reply: Reply) -> tuple[str | int | float | None, ...]:
    top = None if reply.top_logprobs is None else json.dumps(reply.top_logprobs)
    return (
        reply.text, reply.finish, top, reply.model, reply.fingerprint,
        reply.prompt_tokens, reply.completion_tokens, reply.usd, reply.seconds,
    )  # fmt: skip


def _reply(row: tuple) -> Reply:
    text, finish, top, *rest = row
    pairs = None if top is None else [(token, logprob) for token, logprob in json.loads(top)]
    return Reply(text, finish_of(finish), pairs, *rest)
