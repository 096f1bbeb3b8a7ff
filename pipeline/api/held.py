"""Paid replies for which the disk has no room: held in memory until it has."""

import asyncio
import sys
import time

from pipeline.api.completions import Reply
from pipeline.api.database import DiskFullError
from pipeline.api.replies import ReplyCache
from pipeline.common.errors import UserError

_WAIT_S = 600.0
_TRY_S = 0.2


class HeldReplies:
    """Stores replies in the cache, and holds those that it cannot take."""

    def __init__(self, cache: ReplyCache, account: str) -> None:
        self._cache = cache
        self._account = account
        self._held: list[tuple[str, Reply, float]] = []

    def put(self, key: str, reply: Reply, reserved_usd: float) -> None:
        """Store a reply. Raises DiskFullError, and holds the reply, where the disk is full."""
        try:
            self._cache.put(self._account, key, reply, reserved_usd)
        except DiskFullError:
            self._held.append((key, reply, reserved_usd))
            raise

    async def store(self) -> None:
        """Store what is held as soon as there is room. Raises UserError if there never is."""
        if not self._held:
            return
        until = time.monotonic() + _WAIT_S
        waiting = f"{len(self._held)} paid replies wait in memory; free some space within {_WAIT_S / 60:.0f} minutes"
        print(f"the disk is full: {waiting}", file=sys.stderr)
        while self._held:
            try:
                self._cache.put(self._account, *self._held[-1])
                self._held.pop()
            except DiskFullError as error:
                if time.monotonic() > until:
                    raise UserError(f"{error} {len(self._held)} paid replies found no room and are lost.") from None
                await asyncio.sleep(_TRY_S)
