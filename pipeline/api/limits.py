"""What holds the client back: requests in flight, requests and tokens a minute, money."""

import asyncio
import time
from collections import deque

from pipeline.api.replies import VerdictCache
from pipeline.common.errors import UserError


class Gate:
    """Bounded concurrency that adapts to 429s: halved at a 429, one more after a whole round of successes.

    Additive increase, multiplicative decrease, as TCP does (Chiu and Jain 1989). 429s that arrive
    within a second of a cut belong to the same overload and do not cut again.
    """

    def __init__(self, limit: int) -> None:
        self._most = limit
        self._limit = float(limit)
        self._in_flight = 0
        self._paused_until = 0.0
        self._last_cut = float("-inf")
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> int:
        """How many requests may be in flight now."""
        return int(self._limit)

    @property
    def pause_s(self) -> float:
        """For how long nothing may be sent."""
        return max(0.0, self._paused_until - time.monotonic())

    async def enter(self) -> None:
        """Wait for a free place."""
        if self._in_flight < self.limit:
            self._in_flight += 1
        else:
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            await place

    def leave(self) -> None:
        """Give the place back."""
        self._in_flight -= 1
        # Not at once: whoever leaves and has more to send goes on in the same breath.
        asyncio.get_running_loop().call_soon(self._admit)

    def _admit(self) -> None:
        while self._waiting and self._in_flight < self.limit:
            place = self._waiting.popleft()
            if not place.done():  # cancelled
                self._in_flight += 1
                place.set_result(None)

    def succeeded(self) -> None:
        """Count a reply: the limit grows by one in about as many replies as it allows in flight."""
        if self._limit < self._most:
            self._limit = min(self._most, self._limit + 1 / self._limit)
            self._admit()

    def throttled(self, pause_s: float) -> None:
        """Count a 429: nothing is sent for `pause_s` seconds, and fewer at a time afterwards."""
        now = time.monotonic()
        self._paused_until = max(self._paused_until, now + pause_s)
        if now - self._last_cut >= 1:
            self._last_cut = now
            self._limit = max(1.0, self._limit / 2)


class Pace:
    """Requests and tokens a minute, evenly spaced: no minute passes either by more than one request."""

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._request_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self._token_s = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._next = 0.0

    def turn_s(self, tokens: int) -> float:
        """Give a request that is thought to take `tokens` in all its turn: the seconds until then."""
        if not (self._request_s or self._token_s):
            return 0.0
        now = time.monotonic()
        turn = max(self._next, now)
        self._next = turn + max(self._request_s, tokens * self._token_s)
        return turn - now

    def correct(self, thought: int, used: int) -> None:
        """Account for a request that took `used` tokens where `thought` were thought of."""
        self._next += max(self._request_s, used * self._token_s) - max(self._request_s, thought * self._token_s)


class Budget:
    """Money: what a request may cost is set aside before it is sent, under the judge's cap.

    The account is in the verdict cache, so the cap holds for all processes that share it, killed ones too.
    """

    def __init__(self, judge: str, cap_usd: float | None, cache: VerdictCache) -> None:
        self._judge = judge
        self._cap_usd = cap_usd
        self._cache = cache
        self._in_flight = 0
        self._settled = asyncio.Event()

    async def reserve(self, most_usd: float) -> float:
        """Set aside what a request may cost at most; return what was set aside (0 without a cap).

        Waits for this process's requests in flight where that may make room; raises UserError where not.
        """
        if self._cap_usd is None:
            return 0.0
        while self._cache.reserve(self._judge, [most_usd], self._cap_usd) == 0:
            if self._in_flight == 0:
                raise self.refusal(most_usd)
            self._settled.clear()
            await self._settled.wait()
        self._in_flight += 1
        return most_usd

    def settle(self, *, release_usd: float = 0.0) -> None:
        """A request is over; `release_usd` of what was set aside for it is known not to be spent."""
        if self._cap_usd is None:
            return
        self._in_flight -= 1
        self._settled.set()
        if release_usd:
            self._cache.release(self._judge, [release_usd])

    def reserve_all(self, most_usd: list[float]) -> list[float]:
        """Set aside as many of these, from the first, as fit; return what was set aside for each (0 without a cap)."""
        if self._cap_usd is None:
            return [0.0] * len(most_usd)
        return most_usd[: self._cache.reserve(self._judge, most_usd, self._cap_usd)]

    def release_all(self, reserved_usd: list[float]) -> None:
        """Take back what was set aside for requests that were refused."""
        if self._cap_usd is not None:
            self._cache.release(self._judge, reserved_usd)

    def refusal(self, most_usd: float) -> UserError:
        """The sentence to stop with when the next request, at most `most_usd`, does not fit."""
        return UserError(
            f"judge {self._judge} has spent {self._cache.spent_usd(self._judge):.4f} of its {self._cap_usd} USD "
            "(requests on their way and replies that got lost count as paid), and the next request may cost up to "
            f"{most_usd:.4f}. What was answered is kept in {self._cache.path}: raise budget_usd of {self._judge} in "
            "params.yaml and run again."
        )
