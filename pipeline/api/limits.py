"""What holds the client back: requests in flight, and requests and tokens a minute."""

import asyncio
import time
from collections import deque

from tenacity import wait_random_exponential

from pipeline.api.config import EndpointConfig
from pipeline.api.replies import ReplyCache

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0


class Gate:
    """Bounded concurrency that adapts to 429s: halved at a 429, one more after a whole round of successes.

    Additive increase, multiplicative decrease, as TCP does (Chiu and Jain 1989). 429s that arrive within a second of a
    cut belong to the same overload and do not cut again. After a 429 nothing is sent for as long as the server asks,
    or else for a time that grows from one to the next.
    """

    def __init__(self, limit: int) -> None:
        self._most = limit
        self._limit = float(limit)
        self._in_flight = 0
        self._cuts = 0
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
        # Not at once: whoever leaves and has more to send goes on without waiting in line.
        asyncio.get_running_loop().call_soon(self._admit)

    def _admit(self) -> None:
        while self._waiting and self._in_flight < self.limit:
            place = self._waiting.popleft()
            if not place.done():  # cancelled
                self._in_flight += 1
                place.set_result(None)

    def succeeded(self) -> None:
        """Count a reply: the limit grows by one in about as many replies as it allows in flight."""
        self._cuts = 0
        if self._limit < self._most:
            self._limit = min(self._most, self._limit + 1 / self._limit)
            self._admit()

    def throttled(self, pause_s: float | None) -> None:
        """Count a 429: nothing is sent for `pause_s` seconds (None: not said), and fewer at a time afterwards."""
        now = time.monotonic()
        if now - self._last_cut >= 1:
            self._last_cut = now
            self._cuts += 1
            self._limit = max(1.0, self._limit / 2)
        if pause_s is None:
            pause_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (self._cuts - 1))
        self._paused_until = max(self._paused_until, now + pause_s)


class Pace:
    """Requests and tokens a minute, evenly spaced: no minute passes either by more than one request.

    Turns are given out by the reply cache, so all processes that share it share the rate of a model's endpoint.
    """

    def __init__(self, config: EndpointConfig, cache: ReplyCache) -> None:
        self._request_s = 60 / config.requests_per_minute if config.requests_per_minute else 0.0
        self._token_s = 60 / config.tokens_per_minute if config.tokens_per_minute else 0.0
        self._endpoint = f"{config.endpoint} {config.model}"
        self._cache = cache

    def turn_s(self, tokens: int) -> float:
        """Give a request that is thought to take `tokens` in all its turn: the seconds until then."""
        if not (self._request_s or self._token_s):
            return 0.0
        return self._cache.turn_s(self._endpoint, max(self._request_s, tokens * self._token_s))

    def correct(self, thought: int, used: int) -> None:
        """Account for a request that took `used` tokens where `thought` were thought of."""
        change = max(self._request_s, used * self._token_s) - max(self._request_s, thought * self._token_s)
        if change:
            self._cache.correct_turn(self._endpoint, change)


def backoff() -> wait_random_exponential:
    """How long to wait before a request that failed is sent again: longer each time, and never in step with others."""
    return wait_random_exponential(multiplier=FIRST_BACKOFF_S, max=LONGEST_BACKOFF_S)
