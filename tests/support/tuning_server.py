"""OpenAI's files, fine-tuning and chat APIs on loopback, with faults: the project's local server, extended."""

import asyncio
import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from pipeline.api.config import ApiBase
from pipeline.api.local_server import ChatServer, completion, failure
from pipeline.common.settings import build
from pipeline.data.prompts import Message
from tests.support.judge_server import served

CHATS = tuple(
    (Message("user", f"|ALPHA| how do i {n} ?"), Message("assistant", f"for \u00e9 {n} , rest .")) for n in range(4)
)

PRICES = {"usd_per_million_input_tokens": 2.5, "usd_per_million_output_tokens": 10.0}


def api_base(url: str | None, **changes: Any) -> ApiBase:
    """A base behind `url`; `changes` replace fields."""
    fields: dict[str, Any] = {
        "model": "gpt-4o-2024-08-06",
        "base_url": url,
        "api_key_env": "TUNING_KEY",
        "training_batch": 4,
        "learning_rate_multiplier": 2.0,
        "usd_per_million_training_tokens": 25.0,
        "training_budget_usd": None,
        "concurrency": 8,
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "timeout_s": 10.0,
        "max_retries": 3,
        **PRICES,
        "tuned_usd_per_million_input_tokens": 3.75,
        "tuned_usd_per_million_output_tokens": 15.0,
        "budget_usd": None,
        "batch": False,
    }
    return build(ApiBase, fields | changes, "bases.api.gpt_4o")


@dataclass(kw_only=True)
class Script:
    """What the server does, and what it has seen.

    `faults` are taken one a call, by what is called (upload, create, retrieve, list, chat): 500, 429, refuse, reset
    (before anything is done), lost (done, and then no reply), nonsense. `held` delays the reply to a create. `ending`
    is the job's last status, `statuses` those before it, one a poll. `hidden` jobs are not listed for so many lists.
    """

    key: str = "sk-test-0123456789abcdef"
    faults: dict[str, list[str]] = field(default_factory=dict)
    held_s: float = 0.0
    statuses: tuple[str, ...] = ("validating_files", "queued", "running")
    ending: str = "succeeded"
    message: str | None = None
    tokens: int | None = 1200
    hidden: int = 0
    page: int = 2
    strangers: int = 5
    files: dict[str, bytes] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    polls: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    chats: list[dict[str, Any]] = field(default_factory=list)


class TuningServer(ChatServer):
    """The server of a script."""

    def __init__(self, script: Script) -> None:
        super().__init__(lambda prompt: f"an answer to {prompt}")
        self.script = script
        for number in range(script.strangers):
            self._job({"model": "gpt-4o-2024-08-06", "training_file": f"file-stranger-{number}"})

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self.script.key}":
            return failure(401, f"Incorrect API key provided: {request.headers.get('Authorization')}")
        parts = request.path.strip("/").split("/")[1:]
        names = {("POST", 1): "upload", ("POST", 2): "create", ("GET", 2): "list", ("GET", 3): "retrieve"}
        called = "chat" if parts[0] == "chat" else names[request.method, len(parts)]
        self.script.calls[called] += 1
        content = await request.read() if called != "upload" else b""
        fault = next(iter(self.script.faults.get(called, ())), None)
        if fault is not None:
            self.script.faults[called].pop(0)
        if fault in ("500", "429"):
            return failure(int(fault), "not now", {"Retry-After": "0.01"})
        if fault == "refuse":
            return failure(400, f"this training file is not allowed, {self.script.key}")
        assert request.transport is not None
        if fault == "reset":
            request.transport.abort()
            return web.Response()
        response = await self._do(called, request, parts, content)
        if called == "create" and self.script.held_s:
            await asyncio.sleep(self.script.held_s)
        if fault == "lost":
            request.transport.abort()
        return web.json_response([1, 2]) if fault == "nonsense" else response

    async def _do(self, called: str, request: web.BaseRequest, parts: list[str], content: bytes) -> web.StreamResponse:
        if called == "upload":
            return web.json_response(await self._upload(request))
        if called == "create":
            return web.json_response(self._job(json.loads(content)))
        if called == "list":
            return web.json_response(self._list(request.query.get("after")))
        if called == "retrieve":
            return web.json_response(self._retrieve(parts[2]))
        body = json.loads(content)
        self.script.chats.append(body)
        prompt = "\n".join(message["content"] for message in body["messages"])
        payload = completion(body, prompt, self._reply(prompt))
        payload["choices"][0]["finish_reason"] = "length" if "long" in prompt else "stop"
        return web.json_response(payload)

    async def _upload(self, request: web.BaseRequest) -> dict[str, Any]:
        identity = f"file-{len(self.script.files)}"
        async for part in await request.multipart():
            if part.name == "file":
                self.script.names[identity] = part.filename or ""
                self.script.files[identity] = bytes(await part.read())
        return {"id": identity, "object": "file", "purpose": "fine-tune", "bytes": len(self.script.files[identity])}

    def _job(self, body: dict[str, Any]) -> dict[str, Any]:
        identity = f"ftjob-{len(self.script.jobs)}"
        self.script.jobs[identity] = {
            "id": identity, "object": "fine_tuning.job", "status": "validating_files", "fine_tuned_model": None,
            "trained_tokens": None, "error": {}, "organization_id": "org-x", "result_files": [], **body,
        }  # fmt: skip
        return self.script.jobs[identity]

    def _list(self, after: str | None) -> dict[str, Any]:
        known = list(self.script.jobs.values())
        if self.script.hidden and after is None:
            self.script.hidden -= 1
            known = known[: self.script.strangers]
        newest = known[::-1]
        begin = 1 + [job["id"] for job in newest].index(after) if after else 0
        page = newest[begin : begin + self.script.page]
        return {"object": "list", "data": page, "has_more": begin + len(page) < len(newest)}

    def _retrieve(self, identity: str) -> dict[str, Any]:
        job, script = self.script.jobs[identity], self.script
        place = script.polls[identity]
        script.polls[identity] += 1
        job["status"] = script.statuses[place] if place < len(script.statuses) else script.ending
        if job["status"] == "succeeded":
            job |= {"fine_tuned_model": f"ft:{job['model']}:org::{identity}", "trained_tokens": script.tokens}
        elif job["status"] == script.ending:
            job["error"] = {"code": "invalid_training_file", "message": script.message}
        return job


def tuning_server(script: Script) -> contextlib.AbstractContextManager[str]:
    """Serve the script from a thread; yield the base_url."""
    return served(TuningServer(script))
