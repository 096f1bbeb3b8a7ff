"""OpenAI's fine-tuning API, one job at a time: upload, create, poll; never two jobs for one order.

The call that creates a job costs money, and the API has no key by which a repeated call is known for what it is. So
it is never simply sent again: when a process was killed in it, or its reply got lost, the account's jobs are looked
through for one on the same training file, which was uploaded for this order alone, and that job is taken.
"""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from pipeline.api.config import EndpointConfig
from pipeline.api.endpoint import Endpoint, EndpointError, fatal
from pipeline.api.state import Order, State, States
from pipeline.common.errors import UserError
from pipeline.common.text import one_line

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob

_UNDER_WAY = ("validating_files", "queued", "running", "paused")
_OVER = ("succeeded", "failed", "cancelled")
_FIRST_POLL_S = 2.0
_LONGEST_POLL_S = 60.0
_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 60.0
_LONGEST_PAUSE_S = 900.0
# How long a job that was just asked for may take to appear in the account's list, and how often we look.
_APPEARS_WITHIN_S = 60.0
_LOOKS = 4
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
        if state.phase == "asking" and (found := await self._look_for(state)):
            return found
        with self._states.account():
            self._within_budget(state, budget_usd)
            self._save(state.model_copy(update={"phase": "asking"}))
        faults = 0
        while True:
            try:
                job = await self._explained(self._create(state))
                return str(job.id)
            except EndpointError as error:
                # Turned away, or never heard: there is no job. After any other failure there may be one.
                unsure = error.retry and not error.unreachable and error.status != 429
                if unsure and (found := await self._look_for(state)):
                    return found
                if not error.retry or faults >= self._config.max_retries:
                    self._save(state.model_copy(update={"phase": "uploaded" if not error.retry else "asking"}))
                    raise self._refusal(error) from None
                faults += 1
                await self._pause(faults, error)

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
        began, faults = time.monotonic(), 0
        while True:
            try:
                return await self._explained(call())
            except EndpointError as error:
                gone = time.monotonic() - began > _GONE_S
                away = error.unreachable and not patient and faults >= self._config.max_retries
                if not error.retry or gone or away:
                    raise self._refusal(error) from None
                faults += 1
                await self._pause(faults, error)

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

    async def _pause(self, faults: int, error: EndpointError) -> None:
        backoff = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** (faults - 1))
        await asyncio.sleep(min(_LONGEST_PAUSE_S, max(backoff, error.pause_s or 0.0)))

    def _refusal(self, error: EndpointError) -> UserError:
        stop = fatal(error, self._config) if error.status != 404 else None
        said = str(stop).removeprefix("judge ") if stop else f"{self._config.model}: {error}"
        return UserError(f"model {said.rstrip('.')}; what was done is kept, run again to go on.")


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


@asynccontextmanager
async def jobs(config: EndpointConfig, states: States, say: Callable[[str], None]) -> AsyncIterator[Jobs]:
    """A connection to the endpoint that the configuration names."""
    async with Endpoint(config) as endpoint:
        yield Jobs(config, endpoint, states, say)
