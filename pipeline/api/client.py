"""Asking a judge many things at once: retries, adaptive concurrency, budget; every reply kept at once."""

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator

from pipeline.api.completions import Reply, Request, check_reply, parse_completion
from pipeline.api.config import EndpointConfig
from pipeline.api.endpoint import Endpoint, EndpointError, fatal
from pipeline.api.limits import Budget, Gate, Pace
from pipeline.api.progress import Progress
from pipeline.api.replies import VerdictCache
from pipeline.api.summary import Summary
from pipeline.common.errors import UserError

_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 30.0
_LONGEST_PAUSE_S = 900.0
_STALL_S = 300.0
_PREFLIGHT_TRIES = 3


class Client:
    """Asks one judge and stores what it says.

    A reply is committed to the cache before its place is given to the next request, so a killed process
    loses at most the requests in flight. `progress` is told after every reply.
    """

    def __init__(
        self,
        config: EndpointConfig,
        endpoint: Endpoint,
        cache: VerdictCache,
        summary: Summary,
        progress: Progress,
    ) -> None:
        self._judge = summary.judge
        self._config = config
        self._endpoint = endpoint
        self._cache = cache
        self._summary = summary
        self._progress = progress
        self._gate = Gate(config.concurrency)
        self._pace = Pace(config.requests_per_minute, config.tokens_per_minute)
        self._budget = Budget(summary.judge, config.budget_usd, cache)
        self._stop: UserError | None = None
        self._stopped = asyncio.Event()
        self._answered = False
        self._last_reply = time.monotonic()

    async def ask(self, requests: list[Request]) -> None:
        """Ask all requests; replies go to the cache, requests given up to `summary.errors`.

        Until one is answered they go alone, which shows whether endpoint, key and model work
        (preflight). Raises UserError when nothing more can be asked (no access, no credit, budget,
        endpoint gone, cache unusable); requests in flight are then still waited for and kept.
        """
        todo = iter(requests)
        while not self._answered and self._stop is None and (first := next(todo, None)) is not None:
            await self._work(iter([first]))
        # Twice as many workers as places: one that waits before sending again must not idle its place.
        workers = min(2 * self._config.concurrency, len(requests))
        await asyncio.gather(*(self._work(todo) for _ in range(workers)))
        if self._stop is not None:
            raise self._stop

    async def _work(self, todo: Iterator[Request]) -> None:
        try:
            while self._stop is None and (request := next(todo, None)) is not None:
                await self._until_answered(request)
        except UserError as stop:
            self._stop = self._stop or stop
            self._stopped.set()

    async def _until_answered(self, request: Request) -> None:
        tries = faults = 0
        while self._stop is None:
            await self._gate.enter()
            try:
                await self._send(request)
                return
            except EndpointError as error:
                fault = error
            finally:
                self._gate.leave()
            delay = self._react(request, fault, tries, faults)
            if delay is None:
                return
            tries += 1
            faults += fault.status != 429
            await self._rest(delay)

    async def _rest(self, seconds: float) -> None:
        """Sleep, but no longer once the run has stopped."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), seconds)

    async def _send(self, request: Request) -> None:
        """Send a request once, when it may be, and keep the reply; once the run has stopped it is not sent.

        Raises EndpointError, or UserError when money or disk is short.
        """
        most_prompt = most_prompt_tokens(request)
        tokens = (most_prompt + self._config.max_reply_tokens) // 4
        await self._rest(self._pace.turn_s(tokens))
        while self._stop is None and (pause := self._gate.pause_s):
            await self._rest(pause)
        if self._stop is not None:
            return
        reserved = await self._budget.reserve(self._config.usd(most_prompt, self._config.max_reply_tokens))
        free = 0.0
        try:
            reply = await self._once(request)
            if not self._answered:
                check_reply(reply, self._config)  # one that cannot serve must not be found in the cache later
            self._cache.put(self._judge, request.key, reply, reserved)
        except EndpointError as error:
            # A reply that got lost on its way may be charged all the same.
            free = reserved if error.status is not None or error.unreachable else 0.0
            raise
        finally:
            self._budget.settle(release_usd=free)
        self._pace.correct(tokens, reply.prompt_tokens + reply.completion_tokens)
        self._count(reply)

    async def _once(self, request: Request) -> Reply:
        started = time.perf_counter()
        payload = await self._endpoint.complete(request.body)
        try:
            return parse_completion(payload, self._config, time.perf_counter() - started)
        except ValueError as error:
            raise EndpointError(f"{self._endpoint.where}: {error}", retry=True) from None

    def _count(self, reply: Reply) -> None:
        self._answered = True
        self._last_reply = time.monotonic()
        self._gate.succeeded()
        self._summary.replied(reply)
        self._progress.replied(self._summary)

    def _react(self, request: Request, error: EndpointError, tries: int, faults: int) -> float | None:
        """Seconds to wait before sending again, or None to give the request up; UserError gives up everything."""
        backoff = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2**tries) * random.uniform(0.5, 1.0)
        pause = error.pause_s
        if (stop := fatal(error, self._config)) and not (self._answered and error.status == 403):
            raise stop  # a 403 later on is about one prompt: some endpoints moderate them
        if not self._answered and error.unreachable and faults + 1 >= _PREFLIGHT_TRIES:
            raise UserError(f"judge {self._judge}: {error}; is its server up, and base_url right?")
        if not self._answered and not error.retry and len(self._summary.errors) + 1 >= _PREFLIGHT_TRIES:
            raise UserError(f"judge {self._judge}: {error}")
        if pause is not None and pause > _LONGEST_PAUSE_S:
            raise UserError(
                f"judge {self._judge}: the endpoint asks to wait {pause / 60:.0f} minutes; what was "
                "answered is kept, run again then."
            )
        stall_s = max(_STALL_S, 3 * self._config.timeout_s)
        if time.monotonic() - self._last_reply > stall_s:
            raise UserError(
                f"judge {self._judge}: no request has succeeded for {stall_s / 60:.0f} minutes "
                f"(last: {error}); what was answered is kept, run again to continue."
            )
        if error.status == 429:
            self._summary.throttled += 1
            self._gate.throttled(backoff if pause is None else pause)
            if pause is not None:  # waiting as told is not standing still
                self._last_reply = max(self._last_reply, time.monotonic() + pause)
            return backoff
        if error.retry and faults < self._config.max_retries:
            self._summary.retries += 1
            return backoff if pause is None else max(pause, backoff)
        self._summary.errors[request.key] = str(error)
        self._progress.replied(self._summary)
        return None


def most_prompt_tokens(request: Request) -> int:
    """More tokens than the prompt can have: byte-level tokenizers make at most one of each byte."""
    return 16 + sum(len(message["content"].encode()) for message in request.body["messages"])
