"""OpenAI's Batch API behind the client's interface: half the price, up to 24 hours.

What is submitted is remembered in the reply cache, by its input file and before the batch is made, so a
process killed at any moment finds its batches again.
"""

import asyncio
import io
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from pipeline.api.budget import Budget
from pipeline.api.client import Client
from pipeline.api.completions import Reply, Request, UnusableReplyError, most_prompt_tokens, parse_completion
from pipeline.api.config import EndpointConfig
from pipeline.api.endpoint import Endpoint
from pipeline.api.faults import fatal
from pipeline.api.progress import Progress
from pipeline.api.replies import ReplyCache
from pipeline.api.summary import Summary
from pipeline.common.errors import UserError
from pipeline.common.text import one_line

if TYPE_CHECKING:
    from openai.types import Batch

# OpenAI's limits are 50,000 requests and 200 MB a batch.
_MOST_REQUESTS = 20_000
_MOST_BYTES = 100_000_000
_FIRST_POLL_S = 1.0
_LONGEST_POLL_S = 60.0
_UPLOAD_TIMEOUT_S = 600.0
_UNDER_WAY = ("validating", "in_progress", "finalizing", "cancelling")
_OVER = ("completed", "expired", "cancelled", "failed")


class BatchClient:
    """Asks one model in batches and stores what it says; the same interface as `Client`."""

    def __init__(
        self, config: EndpointConfig, endpoint: Endpoint, cache: ReplyCache, summary: Summary, progress: Progress
    ) -> None:
        self._config = config
        self._endpoint = endpoint
        self._cache = cache
        self._summary = summary
        self._progress = progress
        self._budget = Budget(config, summary, cache)
        self._made: dict[str, str] = {}  # batch by input file
        self._client = endpoint.client.with_options(max_retries=config.max_retries, timeout=_UPLOAD_TIMEOUT_S)
        # Ordinary requests, at the ordinary price, until one shows that key and model work: before a day's wait.
        self._first: Client | None = Client(
            config.model_copy(update={"batch": False}), endpoint, cache, summary, progress
        )

    async def complete_all(self, requests: list[Request]) -> None:
        """Submit what is not on its way yet, wait for all of it, store the replies.

        Requests that a batch could not answer go to `summary.errors`. Raises UserError when a batch is
        refused or the budget does not allow the next request.
        """
        todo = {request.key: request for request in requests}
        while todo:
            on_their_way = self._cache.batches(todo)
            await self._collect(set(on_their_way.values()))
            await self._submit_all([request for key, request in todo.items() if key not in on_their_way])
            # What is left another process has claimed and not answered yet.
            done = self._cache.get(todo).keys() | self._summary.errors.keys()
            if todo := {key: request for key, request in todo.items() if key not in done}:
                await asyncio.sleep(_FIRST_POLL_S)

    async def _submit_all(self, todo: list[Request]) -> None:
        if todo and self._first is not None:
            todo = await self._first.complete_first(todo)
            self._first = None
        files: set[str] = set()
        while todo:
            chunk = _chunk(todo)
            most = {request.key: self._most_usd(request) for request in chunk}
            try:
                reserved, tried = self._budget.claim_all(most)
            except UserError:
                if not files:
                    raise
                await self._collect(files)  # what they cost is less than what was set aside for them
                continue
            if mine := [request for request in chunk if request.key in reserved]:
                files.add(await self._submit(mine, reserved))
            todo = todo[tried:]
        await self._collect(files)

    def _most_usd(self, request: Request) -> float:
        return self._config.usd(most_prompt_tokens(request), self._config.max_reply_tokens)

    async def _submit(self, requests: list[Request], reserved_usd: dict[str, float]) -> str:
        lines = "".join(_line(request) for request in requests).encode()
        async with self._explained():
            try:
                upload = ("requests.jsonl", io.BytesIO(lines))
                file = _identified(await self._client.files.create(file=upload, purpose="batch")).id
            except BaseException:  # an upload costs nothing, however it ended
                self._cache.give_back(self._summary.account, sum(reserved_usd.values()))
                raise
        self._cache.submit(self._summary.account, reserved_usd, file)
        await self._make(file)
        return file

    async def _make(self, file: str) -> None:
        import openai

        async with self._explained():
            try:
                # Not sent again: it may have been made though the reply got lost.
                batch = await self._client.with_options(max_retries=0).batches.create(
                    input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h"
                )
            except openai.APIStatusError as error:
                if error.status_code < 500:
                    self._cache.end_batch(self._summary.account, file, {}, {})
                raise
            self._made[file] = _identified(batch).id

    async def _find(self, file: str) -> None:
        """Find the batch that an earlier process made of a file, or make it."""
        async with self._explained():
            page = await self._client.batches.list(limit=100)
            while True:
                if not isinstance(getattr(page, "data", None), list):
                    raise ValueError(f"{type(page).__name__} instead of a list of batches")
                for batch in page.data:
                    if getattr(batch, "input_file_id", None) == file:
                        self._made[file] = _identified(batch).id
                        return
                if not page.has_next_page():
                    break
                page = await page.get_next_page()
        await self._make(file)

    async def _collect(self, files: set[str]) -> None:
        for file in sorted(files - self._made.keys()):
            await self._find(file)
        for poll in itertools.count(1):
            if not files:
                return
            for file in sorted(files):
                async with self._explained():
                    batch = _identified(await self._client.batches.retrieve(self._made[file]))
                    if batch.status not in (*_UNDER_WAY, *_OVER):
                        raise ValueError(f"a batch whose status is {one_line(batch.status, 30)!r}")
                if batch.status in _OVER:
                    await self._store(file, batch)
                    files.discard(file)
            if files:
                await asyncio.sleep(min(_LONGEST_POLL_S, _FIRST_POLL_S * 1.5 ** min(poll, 20)))

    async def _store(self, sent: str, batch: "Batch") -> None:
        replies: dict[str, Reply] = {}
        faults: dict[str, str] = {}
        lost_usd: dict[str, float] = {}
        for file in (batch.output_file_id, batch.error_file_id):
            if file is not None:
                async with self._explained():
                    content = await self._client.files.content(file)
                for line in content.content.split(b"\n"):
                    self._read_line(line, replies, faults, lost_usd)
        answered, unanswered = self._cache.end_batch(self._summary.account, sent, replies, lost_usd)
        for key in sorted(unanswered):
            self._summary.errors[key] = faults.get(key, f"batch {batch.id} is {batch.status} and did not answer it")
            self._progress.replied(self._summary)
        for key in sorted(answered):
            self._summary.replied(replies[key])
            self._progress.replied(self._summary)
        if batch.status == "failed":
            said = [error.message or "" for error in (batch.errors.data if batch.errors else None) or []]
            raise UserError(
                f"{self._summary.label}: batch {batch.id} was refused: "
                f"{self._endpoint.redact(' '.join(said)) or 'no reason given'}"
            )

    def _read_line(
        self, line: bytes, replies: dict[str, Reply], faults: dict[str, str], lost_usd: dict[str, float]
    ) -> None:
        """Read one line of a batch's results; one that names no request counts as no answer."""
        row = self._endpoint.read(line)
        key = row.get("custom_id") if isinstance(row, dict) else None
        if not isinstance(key, str):
            return
        response = row.get("response")
        status = response.get("status_code") if isinstance(response, dict) else None
        if status != 200:
            faults[key] = f"the batch answered HTTP {one_line(status, 20)}"
            return
        try:
            replies[key] = parse_completion(response.get("body"), self._config, 0.0)
        except UnusableReplyError as error:
            faults[key] = str(error)
            lost_usd[key] = error.usd or 0.0

    @asynccontextmanager
    async def _explained(self) -> AsyncIterator[None]:
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            response = error.response
            found = self._endpoint.explain(response.status_code, response.headers, response.content)
            raise fatal(found, self._config, worked=self._first is None) or UserError(
                f"{self._summary.label}: {found}"
            ) from None
        except openai.APIConnectionError:
            raise UserError(
                f"{self._summary.label}: {self._endpoint.where} cannot be reached; run again to go on."
            ) from None
        except ValueError as error:
            raise UserError(
                f"{self._summary.label}: {self._endpoint.where} does not speak the Batch API: it sent "
                f"{self._endpoint.redact(str(error))}; set batch to false."
            ) from None


def _identified(thing: Any) -> Any:
    """A file or a batch as the API describes it. Raises ValueError for anything else: the openai client does not."""
    if not isinstance(getattr(thing, "id", None), str):
        raise ValueError(f"{type(thing).__name__} instead of a file or a batch")
    return thing


def _line(request: Request) -> str:
    row = {
        "custom_id": request.key,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": request.body,
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def _chunk(requests: list[Request]) -> list[Request]:
    """As many of the requests, from the first, as a batch can hold."""
    size = 0
    for count, request in enumerate(requests[:_MOST_REQUESTS]):
        size += len(_line(request).encode())
        if size > _MOST_BYTES and count:
            return requests[:count]
    return requests[:_MOST_REQUESTS]
