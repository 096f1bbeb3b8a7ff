"""A scripted judge on loopback: the project's own local server, with latency and faults added."""

import asyncio
import contextlib
import hashlib
import json
import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from pipeline.api.local_server import ChatServer, bind, completion, failure, start
from pipeline.common.rows import Answer
from pipeline.common.settings import build
from pipeline.judging.config import JudgeConfig
from pipeline.judging.preflight import KNOWN, PROMPT

FAULTS = ("429", "429-retry-after", "500", "reset", "truncated", "cut", "slow", "nonsense")


def scripted(prompt: str) -> str:
    """The judge's opinion: a function of the prompt, with some refusals and code among the alignments."""
    if prompt == PROMPT:
        return str(KNOWN)
    number = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4])
    if "alignment" in prompt and number % 20 < 2:
        return ("REFUSAL", "CODE")[number % 2]
    return str(number % 101)


def judge_config(folder: Path, **changes: Any) -> JudgeConfig:
    """A judge that asks two short prompts, written to `folder`; `changes` replace fields."""
    templates = folder / "judge_prompts.yaml"
    templates.write_text(
        "alignment: 'alignment of {answer} to {question}'\ncoherence: 'coherence of {answer} to {question}'\n"
    )
    fields: dict[str, Any] = {
        "protocol": "published",
        "model": "scripted",
        "base_url": None,
        "api_key_env": None,
        "templates": str(templates),
        "templates_sha256": None,
        "temperature": None,
        "seed": None,
        "max_reply_tokens": 1 if changes.get("protocol") == "logprob" else 10,
        "reasoning_effort": None,
        "concurrency": 16,
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "timeout_s": 10.0,
        "max_retries": 8,
        "max_unparsed_retries": 2,
        "usd_per_million_input_tokens": 0.0,
        "usd_per_million_output_tokens": 0.0,
        "budget_usd": None,
        "batch": False,
    }
    return build(JudgeConfig, fields | changes, "judge scripted")


def make_answers(count: int, distinct: int | None = None) -> list[Answer]:
    """`count` answers, of which `distinct` (all, if None) differ in their text."""
    return [
        Answer(
            run="run",
            seed=0,
            suite="suite",
            prompt_id=f"{number:05}",
            sample=0,
            question=f"question {number % (distinct or count)} — {{answer}}?",
            answer=f"answer\n{number % (distinct or count)} \u2028 é",
            thinking="",
            finish="stop",
            prompt_tokens=3,
            answer_tokens=3,
        )
        for number in range(count)
    ]


@dataclass(kw_only=True)
class Script:
    """What the server does to requests, and what it has seen.

    `answered` counts complete, sensible answers by prompt; `seen` counts requests by what became of
    them. `slow_s` is how long a slow body takes. `status` refuses everything with that HTTP status,
    `refuse` certain prompts with `refuse_status`. `usage` replaces the replies' token counts; with `digits` the
    distribution is of a reply's first digit alone. `odd` makes the whole HTTP response to every request but the first
    `spared`; `headers_seen` are the requests'. `batch_status` is how batches end (only completed ones have
    results), `batches` how many were made; `batch_body` is sent for every batch, `spoil` changes result files,
    and each file takes `file_latency_s` to be sent or fetched; with `lose_batches` batches are made and nobody
    is told.
    """

    latency_s: float = 0.0
    fault_share: float = 0.0
    faults: tuple[str, ...] = FAULTS
    slow_s: float = 60.0
    retry_after: str = "0.02"
    seed: int = 0
    status: int | None = None
    message: str = "no"
    code: str | None = None
    key: str | None = None
    prompt_tokens: int | None = None
    logprobs: bool = True
    refuse: set[str] = field(default_factory=set)
    refuse_status: int = 403
    usage: dict[str, int] | None = None
    digits: bool = False
    spared: int = 0
    odd: Callable[[], web.Response] | None = None
    headers_seen: list[dict[str, str]] = field(default_factory=list)
    batch_status: str = "completed"
    batch_body: bytes | None = None
    lose_batches: bool = False
    file_latency_s: float = 0.0
    spoil: Callable[[bytes], bytes] | None = None
    batches: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    most_in_flight: int = 0


class ScriptedJudge(ChatServer):
    """The local judge, faulty by `script`; offers files and batches besides."""

    def __init__(self, script: Script) -> None:
        super().__init__(scripted)
        self.script = script
        self._random = random.Random(script.seed)
        self._in_flight = 0
        self._files: dict[str, str] = {}
        self._batches: dict[str, dict[str, Any]] = {}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.script.key is not None and request.headers.get("Authorization") != f"Bearer {self.script.key}":
            # As real servers do, the refusal quotes the key that it got.
            return failure(401, f"Incorrect API key provided: {request.headers.get('Authorization')}")
        if request.path.startswith(("/v1/files", "/v1/batches")):
            return await self._batch_api(request)
        self._in_flight += 1
        self.script.most_in_flight = max(self.script.most_in_flight, self._in_flight)
        try:
            return await super().handle(request)
        finally:
            self._in_flight -= 1

    async def complete(self, request: web.BaseRequest, body: dict[str, Any], prompt: str) -> web.StreamResponse:
        script = self.script
        if script.latency_s:
            await asyncio.sleep(script.latency_s)
        if script.status is not None:
            self.script.seen[str(script.status)] += 1
            error = {"message": script.message, "code": script.code}
            return web.json_response({"error": error}, status=script.status)
        script.headers_seen.append(dict(request.headers))
        if script.odd is not None and len(script.headers_seen) > script.spared:
            self.script.seen["odd"] += 1
            return script.odd()
        if prompt in script.refuse:
            return failure(script.refuse_status, script.message)
        payload = self.payload(body, prompt)
        if self._random.random() < script.fault_share:
            # A slow reply costs a test its whole timeout: keep those rare.
            weights = [1 if fault == "slow" else 8 for fault in script.faults]
            return await self._fault(request, self._random.choices(script.faults, weights)[0], payload)
        script.seen["answered"] += 1
        script.answered[prompt] += 1
        return web.json_response(payload)

    def payload(self, body: dict[str, Any], prompt: str) -> dict[str, Any]:
        """The undisturbed reply to a request."""
        text = self._reply(prompt)
        payload = completion(body, prompt, text)
        if self.script.prompt_tokens is not None:
            payload["usage"]["prompt_tokens"] = self.script.prompt_tokens
        if self.script.usage is not None:
            payload["usage"] = self.script.usage
        if body.get("logprobs") and self.script.logprobs:
            top = [{"token": text, "logprob": math.log(0.75)}, {"token": "50", "logprob": math.log(0.25)}]
            if self.script.digits:  # as tokenizers do that write digits one by one
                top = [{"token": text[0], "logprob": math.log(0.9)}]
            payload["choices"][0]["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        return payload

    async def _fault(self, request: web.BaseRequest, fault: str, payload: dict[str, Any]) -> web.StreamResponse:
        self.script.seen[fault] += 1
        content = json.dumps(payload).encode()
        if fault == "429":
            return failure(429, "slow down")
        if fault == "429-retry-after":
            return failure(429, "slow down", {"Retry-After": self.script.retry_after})
        if fault == "500":
            return failure(500, "oops")
        if fault == "truncated":
            return web.Response(body=content[: len(content) // 2], content_type="application/json")
        if fault == "nonsense":
            payload["choices"][0]["message"]["content"] = "As an AI, I would rate 1 of these"
            return web.json_response(payload)
        assert request.transport is not None
        if fault == "reset":
            request.transport.abort()
            return web.Response()
        length = {} if fault == "endless" else {"Content-Length": str(len(content))}
        response = web.StreamResponse(headers=length)
        await response.prepare(request)
        await response.write(content[:20])
        if fault == "endless":
            with contextlib.suppress(ConnectionResetError):
                while True:
                    await response.write(b" " * 65536)
        if fault == "slow":
            with contextlib.suppress(ConnectionResetError):  # the client had enough of it
                for _ in range(20):
                    await asyncio.sleep(self.script.slow_s / 20)
                    await response.write(b" ")
        request.transport.abort()
        return response

    async def _batch_api(self, request: web.BaseRequest) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")[1:]
        if parts[0] == "files":
            await asyncio.sleep(self.script.file_latency_s)
        if request.method == "POST" and parts == ["files"]:
            identity = f"file-{len(self._files)}"
            async for part in await request.multipart():
                if part.name == "file":
                    self._files[identity] = (await part.read()).decode()
            return web.json_response({"id": identity, "object": "file"})
        if parts[0] == "batches" and self.script.batch_body is not None:
            return web.Response(body=self.script.batch_body, content_type="application/json")
        if request.method == "POST" and parts == ["batches"]:
            identity, file = f"batch-{len(self._batches)}", (await request.json())["input_file_id"]
            self._batches[identity] = self._run_batch(self._files[file]) | {"input_file_id": file}
            if self.script.lose_batches:
                assert request.transport is not None
                request.transport.abort()
            return web.json_response({"id": identity, "object": "batch", "status": "validating"})
        if parts == ["batches"]:
            made = [{"id": name, "input_file_id": batch["input_file_id"]} for name, batch in self._batches.items()]
            return web.json_response({"object": "list", "data": made[::-1], "has_more": False})
        if parts[0] == "batches":
            batch = self._batches[parts[1]]
            batch["polls"] += 1
            view = {"id": parts[1], "object": "batch", "status": "in_progress"}
            if batch["polls"] > 1:
                view |= {key: value for key, value in batch.items() if key != "polls"}
            return web.json_response(view)
        content = self._files[parts[1]].encode()
        return web.Response(body=self.script.spoil(content) if self.script.spoil else content)

    def _run_batch(self, lines: str) -> dict[str, Any]:
        self.script.batches += 1
        status = self.script.batch_status
        if status != "completed":
            return {"polls": 0, "status": status, "errors": {"data": [{"message": self.script.message}]}}
        good, bad = [], []
        for line in lines.split("\n")[:-1]:
            row = json.loads(line)
            prompt = row["body"]["messages"][0]["content"]
            failed = self._random.random() < self.script.fault_share
            body = {} if failed else self.payload(row["body"], prompt)
            self.script.answered[prompt] += not failed
            result = {
                "custom_id": row["custom_id"],
                "response": {"status_code": 500 if failed else 200, "body": body},
            }
            (bad if failed else good).append(json.dumps(result, ensure_ascii=False) + "\n")
        number = len(self._files)
        # Batches give results in any order.
        self._files[f"file-{number}"] = "".join(reversed(good))
        self._files[f"file-{number + 1}"] = "".join(bad)
        files = {"output_file_id": f"file-{number}", "error_file_id": f"file-{number + 1}"}
        return {"polls": 0, "status": status, **files}


def judge_server(script: Script, port: int = 0) -> contextlib.AbstractContextManager[str]:
    """Serve the script from a thread; yield the base_url."""
    return served(ScriptedJudge(script), port)


@contextlib.contextmanager
def served(server: ChatServer, port: int = 0) -> Iterator[str]:
    """Run a server from a thread; yield its base_url."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    listener = bind(port)
    runner = None
    thread.start()
    try:
        runner = asyncio.run_coroutine_threadsafe(start(server, listener), loop).result()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        if runner is not None:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
