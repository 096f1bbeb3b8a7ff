"""Asking an endpoint many things at once: retries, adaptive concurrency, budget; every reply kept at once."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from pipeline.api import limits
from pipeline.api.budget import Budget
from pipeline.api.completions import (
    Reply,
    Request,
    UnusableReplyError,
    check_reply,
    most_prompt_tokens,
    parse_completion,
)
from pipeline.api.config import EndpointConfig
from pipeline.api.endpoint import Endpoint
from pipeline.api.faults import EndpointError, fatal
from pipeline.api.held import HeldReplies
from pipeline.api.limits import Gate, Pace
from pipeline.api.progress import Progress
from pipeline.api.replies import Claim, ReplyCache
from pipeline.api.summary import Summary
from pipeline.common.errors import UserError

_LONGEST_PAUSE_S = 900.0
_STALL_S = 300.0
_CONNECTS = 3  # tries to reach an endpoint that has not answered yet
_REFUSALS = 8  # prompts that an endpoint may refuse, one after the other, before it answers any
_POLL_S = 0.2  # how often to look for what another process is asking


class Client:
    """Asks one endpoint and stores what it says.

    A reply is committed to the cache before its place is given to the next request, so a killed process loses at most
    the requests in flight; Ctrl-C and a full disk lose none. What another process is asking for at the same moment
    is left to it, and its reply is taken from the cache. `progress` is told after every reply.
    """

    def __init__(
        self, config: EndpointConfig, endpoint: Endpoint, cache: ReplyCache, summary: Summary, progress: Progress
    ) -> None:
        self._config = config
        self._endpoint = endpoint
        self._cache = cache
        self._summary = summary
        self._progress = progress
        self._gate = Gate(config.concurrency)
        self._pace = Pace(config, cache)
        self._budget = Budget(config, summary, cache)
        self._backoff = limits.backoff()
        self._retrying = AsyncRetrying(
            retry=retry_if_exception(self._helps_again),
            stop=stop_after_attempt(config.max_retries + 1),
            wait=self._wait_s,
            sleep=self._rest,
            before_sleep=self._count_retry,
            reraise=True,
        )
        self._stop: UserError | None = None
        self._stopped = asyncio.Event()
        self._answered = False
        self._last_reply = time.monotonic()
        self._anothers: list[Request] = []
        self._held = HeldReplies(cache, summary.account)

    async def complete_all(self, requests: list[Request]) -> None:
        """Ask all requests; replies go to the cache, requests given up to `summary.errors`.

        Until one is answered they go alone, which shows whether endpoint, key and model work. Raises UserError when
        nothing more can be asked (no access, no credit, budget, endpoint gone, cache unusable); requests in flight
        are then still waited for and kept.
        """
        todo = await self.complete_first(requests)
        try:
            # Twice as many workers as places: one that waits before sending again must not idle its place.
            await self._work_on(todo, 2 * self._config.concurrency)
            while self._anothers and self._stop is None:
                await self._rest(_POLL_S)
                left, self._anothers = self._anothers, []
                await self._work_on(left, 2 * self._config.concurrency)
        finally:
            await self._held.store()
        if self._stop is not None:
            raise self._stop

    async def complete_first(self, requests: list[Request]) -> list[Request]:
        """Ask requests alone, from all over the list, until one is answered; return the others. Raises UserError."""
        todo = _spread(requests)
        try:
            while todo and self._must_go_alone():
                await self._work_on([todo.pop(0)], 1)
        finally:
            await self._held.store()
        if self._stop is not None:
            raise self._stop
        return todo

    def _must_go_alone(self) -> bool:
        if self._answered or self._stop is not None:
            return False
        # Of an endpoint that has answered others of these requests, refusals are about the prompts.
        return not self._summary.cache_hits or len(self._summary.errors) < _REFUSALS

    async def _work_on(self, requests: list[Request], workers: int) -> None:
        todo = iter(requests)
        tasks = [asyncio.create_task(self._work(todo)) for _ in requests[:workers]]
        if not tasks:
            return
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:  # Ctrl-C: what is in flight is paid for
            self._stop_with(UserError("interrupted"))
            print("interrupted: replies in flight are waited for (Ctrl-C again drops them)", file=sys.stderr)
            await asyncio.wait(tasks)
            raise
        for task in tasks:
            task.result()

    async def _work(self, todo: Iterator[Request]) -> None:
        try:
            while self._stop is None and (request := next(todo, None)) is not None:
                try:
                    await self._send(request)
                except EndpointError as error:
                    await self._send_again(request, error)
        except UserError as stop:
            self._stop_with(stop)

    async def _send_again(self, request: Request, failure: EndpointError) -> None:
        """Send a request that failed again, as often as may help; record it where none did.

        tenacity takes 0.2 ms a request, a third of all that one costs here, so it sees only those that failed.
        """
        failures = [failure]

        async def attempt() -> None:
            if failures:
                raise failures.pop()  # the first attempt, which has been made
            await self._send(request)

        try:
            await self._retrying.copy()(attempt)  # a copy: one object cannot count the attempts of two requests
        except EndpointError as error:
            self._give_up(request, error)

    def _stop_with(self, stop: UserError) -> None:
        self._stop = self._stop or stop
        self._stopped.set()

    async def _rest(self, seconds: float) -> None:
        """Sleep, but no longer once the run has stopped."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), seconds)

    async def _send(self, request: Request) -> None:
        """Send a request until it is not throttled, and keep the reply; once the run has stopped it is not sent.

        Raises EndpointError, or UserError when money or disk is short.
        """
        while self._stop is None:
            await self._gate.enter()
            try:
                await self._send_once(request)
                return
            except EndpointError as error:
                if error.status != 429 or fatal(error, self._config, worked=self._answered):
                    raise
                self._throttle(error)
            finally:
                self._gate.leave()

    async def _send_once(self, request: Request) -> None:
        config = self._config
        most_prompt = most_prompt_tokens(request)
        tokens = (most_prompt + config.max_reply_tokens) // 4
        while self._stop is None and (pause := self._gate.pause_s):
            await self._rest(pause)
        most_usd = config.usd(most_prompt, config.max_reply_tokens)
        usd = self._budget.expected_usd(most_usd)
        claim = await self._budget.claim(request.key, usd) if self._stop is None else None
        if claim is Claim.ANSWERED:
            self._summary.cache_hits += 1
            self._progress.replied(self._summary)
        elif claim is Claim.ANOTHERS:
            self._anothers.append(request)
        if claim is not Claim.OURS:
            return
        back = usd  # until it is sent
        try:
            await self._rest(self._pace.turn_s(tokens))
            while self._stop is None and (pause := self._gate.pause_s):
                await self._rest(pause)
            if self._stop is not None:
                return
            back = 0.0  # a reply that got lost on its way may be charged all the same
            reply = await self._once(request)
            if not self._answered:
                back = usd - reply.usd
                check_reply(reply, config)  # one that cannot serve must not be found in the cache later
                back = 0.0
            self._budget.learn(most_usd, reply.usd)
            self._held.put(request.key, reply, usd)
        except EndpointError as error:
            back = 0.0 if error.usd is None else usd - error.usd
            raise
        finally:
            self._budget.settle(back)
        self._pace.correct(tokens, reply.prompt_tokens + reply.completion_tokens)
        self._count(reply)

    async def _once(self, request: Request) -> Reply:
        started = time.perf_counter()
        payload = await self._endpoint.complete(request.body)
        try:
            return parse_completion(payload, self._config, time.perf_counter() - started)
        except UnusableReplyError as error:
            raise EndpointError(f"{self._endpoint.where}: {error}", retry=error.retry, usd=error.usd) from None

    def _count(self, reply: Reply) -> None:
        self._answered = True
        self._last_reply = time.monotonic()
        self._gate.succeeded()
        self._summary.replied(reply)
        self._progress.replied(self._summary)

    def _throttle(self, error: EndpointError) -> None:
        self._refuse_to_wait(error)
        self._summary.throttled += 1
        self._gate.throttled(error.pause_s)
        if error.pause_s is not None:  # waiting as told is not standing still
            self._last_reply = max(self._last_reply, time.monotonic() + error.pause_s)

    def _helps_again(self, error: BaseException) -> bool:
        """Whether a request that failed should be sent again. Raises UserError where no request should be."""
        if not isinstance(error, EndpointError):
            return False
        stop = fatal(error, self._config, worked=self._answered)
        if stop is not None and not (self._answered and error.status in (401, 404)):
            raise stop
        self._refuse_to_wait(error)
        return error.retry or stop is not None  # one 401 or 404 among replies is the endpoint's slip

    def _refuse_to_wait(self, error: EndpointError) -> None:
        """Raise UserError where the endpoint asks to wait too long, or has not answered for too long."""
        if error.pause_s is not None and error.pause_s > _LONGEST_PAUSE_S:
            raise UserError(
                f"{self._summary.label}: the endpoint asks to wait {error.pause_s / 60:.0f} minutes; what was "
                "answered is kept, run again then."
            )
        stall_s = max(_STALL_S, 3 * self._config.timeout_s)
        if time.monotonic() - self._last_reply > stall_s:
            raise UserError(
                f"{self._summary.label}: no request has succeeded for {stall_s / 60:.0f} minutes "
                f"(last: {error}); what was answered is kept, run again to continue."
            )

    def _wait_s(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        assert isinstance(error, EndpointError)
        if not self._answered and error.unreachable and state.attempt_number >= _CONNECTS:
            raise UserError(f"{self._summary.label}: {error}; is its server up, and base_url right?")
        return max(self._backoff(state), error.pause_s or 0.0)

    def _count_retry(self, _: RetryCallState) -> None:
        self._summary.retries += 1

    def _give_up(self, request: Request, error: EndpointError) -> None:
        """Record why a request has no reply. Raises UserError where no other will have one either."""
        self._cache.give_up(request.key)
        if stop := fatal(error, self._config, worked=self._answered):
            raise stop
        self._summary.errors[request.key] = str(error)
        self._progress.replied(self._summary)
        refusals = len(self._summary.errors)
        if self._answered or self._summary.cache_hits or error.retry:
            return  # others are answered, or may be
        if refusals >= min(_REFUSALS, self._summary.requests):
            hint = (
                "" if error.status != 403 else f"; perhaps the key in {self._config.api_key_env} may not use this model"
            )
            raise UserError(f"{self._summary.label}: all {refusals} requests were refused, the last one: {error}{hint}")


def _spread(requests: list[Request]) -> list[Request]:
    """The requests, a few from all over the list first: neighbours are refused for the same reason."""
    step = max(1, len(requests) // _REFUSALS)
    first = requests[::step][:_REFUSALS]
    taken = {request.key for request in first}
    return first + [request for request in requests if request.key not in taken]
