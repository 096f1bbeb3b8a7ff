"""OpenAI's fine-tuning API, one job at a time: upload, create, poll; never two jobs for one order.

The call that creates a job costs money, and the API has no key by which a repeated call is known for what it is. So
it is never sent again unless the server said that it had made none: when a process was killed in it, or its reply got
lost, the account's jobs are looked through for one on the same training file, which was uploaded for this order alone.
That job is taken; where none appears the user is asked, since a second one is paid for.
"""

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, stop_after_delay

from pipeline.api import limits
from pipeline.api.config import EndpointConfig
from pipeline.api.endpoint import Endpoint
from pipeline.api.faults import EndpointError, fatal
from pipeline.api.orders import Order, State, States
from pipeline.common.errors import UserError
from pipeline.common.text import one_line

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob

_UNDER_WAY = ("validating_files", "queued", "running", "paused")
_OVER = ("succeeded", "failed", "cancelled")
_FIRST_POLL_S = 2.0
_LONGEST_POLL_S = 60.0
_LONGEST_PAUSE_S = 900.0
# How long a job that was asked for may take to appear in the account's list, and how often we look.
_APPEARS_WITHIN_S = 900.0
_LOOKS = 16
# A server that is gone for so long is not waited for any more; the job goes on without us.
_GONE_S = 1800.0


class Jobs:
    """Carries one order through. `say` is told what happens, in one line each."""

    def __init__(self, config: EndpointConfig, endpoint: Endpoint, states: States, say: Callable[[str], None]) -> None:
        self._config = config
        self._endpoint = endpoint
        self._states = states
        self._say = say
        # Retries are ours: the client would repeat the call that creates a job.
        self._client = endpoint.client.with_options(max_retries=0)

    async def carry_out(self, state: State, content: bytes, budget_usd: float | None, price_usd: float) -> State:
        """The state in which the order's job is over; resumes wherever an earlier process was.

        `price_usd` is of a million trained tokens. Raises UserError when the budget does not allow the job, when the
        API refuses it, or cannot be reached.
        """
        if state.phase == "new":
            self._within_budget(state, budget_usd)  # before anything leaves this machine
            state = self._save(
                state.model_copy(update={"phase": "uploaded", "file": await self._upload(state.order, content)})
            )
        if state.phase in ("uploaded", "asking"):
            job = await self._job_of(state, budget_usd)
            state = self._save(state.model_copy(update={"phase": "created", "job": job}))
            self._say(f"job {job} was created")
        if state.phase == "created":
            state = self._save(_ended(state, await self._wait(state), price_usd, self._endpoint.redact))
        return state

    def _save(self, state: State) -> State:
        self._states.save(state)
        return state

    def _within_budget(self, state: State, budget_usd: float | None) -> None:
        spent = self._states.spent_usd(state.account, state.order)
        if budget_usd is not None and spent + state.estimated_usd > budget_usd:
            raise UserError(
                f"fine-tuning {state.order.start} may cost {state.estimated_usd:.2f} USD, and {state.account} has "
                f"spent {spent:.2f} of its {budget_usd:.2f} (jobs that are not over count as estimated); no job "
                f"was created: raise training_budget_usd of {state.account} in params.yaml."
            )

    async def _upload(self, order: Order, content: bytes) -> str:
        """The id of the order's training file. Uploads cost nothing: one whose reply got lost is left behind."""
        name = f"emoe-{order.key}.jsonl"
        upload = await self._call(
            lambda: self._client.files.create(file=(name, io.BytesIO(content)), purpose="fine-tune")
        )
        self._say(f"{len(content):,} bytes were uploaded as {upload.id}")
        return str(upload.id)

    async def _job_of(self, state: State, budget_usd: float | None) -> str:
        """The id of the order's job: the one that exists, or else one that is created now."""
        if state.phase == "asking":
            return await self._find(state)
        with self._states.account():
            self._within_budget(state, budget_usd)
            self._save(state.model_copy(update={"phase": "asking"}))
        try:
            return str((await self._again(lambda: self._create(state), self._made_none)).id)
        except EndpointError as error:
            if self._made_none(error) or not error.retry:
                self._save(state.model_copy(update={"phase": "uploaded"}))
                raise self._refusal(error) from None
        return await self._find(state)

    @staticmethod
    def _made_none(error: BaseException) -> bool:
        """Whether a call that creates a job surely created none: it was never heard, or turned away for now."""
        return isinstance(error, EndpointError) and (error.unreachable or error.status in (429, 503))

    async def _find(self, state: State) -> str:
        """The id of the job that was asked for. Raises UserError where the account lists none."""
        if found := await self._look_for(state):
            return found
        raise UserError(
            f"model {self._config.model}: a fine-tuning job on {state.file} was asked for and the reply got lost; "
            f"{self._endpoint.where} has listed none for {_APPEARS_WITHIN_S / 60:.0f} minutes. Look at the account's "
            f"fine-tuning jobs: if it is there, run again; if not, delete {self._states.path(state.order)} and run "
            "again, which creates another."
        )

    async def _create(self, state: State) -> "FineTuningJob":
        order = state.order
        assert state.file is not None
        return await self._client.fine_tuning.jobs.create(
            model=order.start,
            training_file=state.file,
            seed=order.seed,
            metadata={"emoe": order.key},
            method={
                "type": "supervised",
                "supervised": {
                    "hyperparameters": {
                        "n_epochs": order.epochs,
                        "batch_size": order.batch,
                        "learning_rate_multiplier": order.learning_rate_multiplier,
                    }
                },
            },
        )

    async def _look_for(self, state: State) -> str | None:
        """The id of the job on the order's training file, looked for until it would have appeared."""
        for look in range(_LOOKS):
            async for job in self._every(lambda: self._client.fine_tuning.jobs.list(limit=100)):
                if getattr(job, "training_file", None) == state.file:
                    return str(job.id)
            if look < _LOOKS - 1:
                await asyncio.sleep(_APPEARS_WITHIN_S / (_LOOKS - 1))
        return None

    async def _wait(self, state: State) -> "FineTuningJob":
        """The job once it is over."""
        assert state.job is not None
        delay, status = _FIRST_POLL_S, ""
        while True:
            job = await self._call(lambda: self._client.fine_tuning.jobs.retrieve(str(state.job)), patient=True)
            if job.status not in (*_UNDER_WAY, *_OVER):
                raise UserError(
                    f"model {self._config.model}: {self._endpoint.where} says that job {state.job} is "
                    f"{one_line(job.status, 30)!r}, which is no state of a fine-tuning job."
                )
            if job.status != status:
                status, delay = job.status, _FIRST_POLL_S
                self._say(f"job {state.job} is {status}")
            if status in _OVER:
                return job
            await asyncio.sleep(delay)
            delay = min(_LONGEST_POLL_S, delay * 1.5)

    async def _call(self, call: Callable[[], Any], *, patient: bool = False) -> Any:
        """The reply to a call that may be repeated: again after transient faults, until the server is gone.

        `patient` waits as long for a server that takes no connections; it may be our network that is down.
        """

        def gone(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            away = isinstance(error, EndpointError) and error.unreachable and not patient
            return (away and state.attempt_number > self._config.max_retries) or stop_after_delay(_GONE_S)(state)

        try:
            return await self._again(call, _helps_again, gone)
        except EndpointError as error:
            raise self._refusal(error) from None

    async def _again(self, call: Callable[[], Any], helps: Callable[[BaseException], bool], stop: Any = None) -> Any:
        """The reply to a call, made again while `helps` says so of its error, `max_retries` times or until `stop`."""
        retrying = AsyncRetrying(
            retry=retry_if_exception(helps),
            stop=stop or stop_after_attempt(self._config.max_retries + 1),
            wait=_wait_s,
            reraise=True,
        )

        async def once() -> Any:
            return await self._explained(call())

        return await retrying(once)

    async def _every(self, pages: Callable[[], Any]) -> AsyncIterator[Any]:
        """Every entry of a list that comes in pages."""

        page = await self._call(pages)
        while True:
            for entry in page.data or []:
                yield entry
            if not page.has_next_page():
                return
            page = await self._call(page.get_next_page)

    async def _explained(self, reply: Any) -> Any:
        """The awaited reply, a thing with an id or a list of such. Raises EndpointError."""
        import openai

        try:
            thing = await reply
        except openai.APIStatusError as error:
            raise self._endpoint.explain(
                error.response.status_code, error.response.headers, error.response.content
            ) from None
        except openai.APIConnectionError as error:
            import httpx2

            unreachable = isinstance(error.__cause__, httpx2.ConnectError)
            reason = "cannot be reached" if unreachable else "broke the connection"
            raise EndpointError(f"{self._endpoint.where} {reason}", retry=True, unreachable=unreachable) from None
        except (openai.OpenAIError, ValueError):
            thing = None
        if not isinstance(getattr(thing, "id", None), str) and not isinstance(getattr(thing, "data", None), list):
            raise EndpointError(
                f"{self._endpoint.where} sent {type(thing).__name__} where the fine-tuning API sends a file or a job",
                retry=True,
            )
        return thing

    def _refusal(self, error: EndpointError) -> UserError:
        # A 404 is about a file or a job, not about the model.
        stop = None if error.status == 404 else fatal(error, self._config, worked=False)
        said = str(stop) if stop else f"model {self._config.model}: {error}"
        return UserError(f"{said.rstrip('.')}; what was done is kept, run again to go on.")


def _helps_again(error: BaseException) -> bool:
    return isinstance(error, EndpointError) and error.retry


def _wait_s(state: RetryCallState) -> float:
    """A backoff, or as long as the server asks, within reason."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.pause_s if isinstance(error, EndpointError) else None
    return min(_LONGEST_PAUSE_S, max(limits.backoff()(state), asked or 0.0))


def _ended(state: State, job: "FineTuningJob", price_usd: float, redact: Callable[[str], str]) -> State:
    """The state once its job is over."""
    tokens = job.trained_tokens if type(job.trained_tokens) is int and job.trained_tokens >= 0 else None
    usd = None if tokens is None else tokens * price_usd / 1e6
    if job.status == "succeeded" and isinstance(job.fine_tuned_model, str) and job.fine_tuned_model:
        return state.model_copy(
            update={"phase": "succeeded", "model": job.fine_tuned_model, "trained_tokens": tokens, "usd": usd}
        )
    # A failed job is not charged; of a cancelled one we cannot know, unless it says what it trained.
    said = redact(str(getattr(job.error, "message", None) or "")) or "no reason given"
    if job.status == "succeeded":
        said = "it names no fine-tuned model"
    elif job.status == "failed" and usd is None:
        usd = 0.0
    return state.model_copy(
        update={"phase": "failed", "reason": f"{job.status}: {said}", "trained_tokens": tokens, "usd": usd}
    )
