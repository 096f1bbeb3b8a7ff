"""A model on this machine: any `reply(prompt) -> str` behind an OpenAI-compatible HTTP server on loopback.

`serve("pipeline.toy.judge:reply")` runs it in a process of its own, which ends with its parent.
The tests' scripted judge is the same server with faults added (tests/support/judge_server.py).
"""

import asyncio
import contextlib
import errno
import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from aiohttp import web

from pipeline.common.errors import UserError
from pipeline.common.processes import end_with_parent

_HOST = "127.0.0.1"


class ChatServer:
    """`/v1/chat/completions` answered by a function of the prompt.

    Token counts are words: the judge behind it is a rule, not a model.
    """

    def __init__(self, reply: Callable[[str], str]) -> None:
        self._reply = reply

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request."""
        if request.method != "POST" or request.path != "/v1/chat/completions":
            return failure(404, f"no {request.method} {request.path} here")
        try:
            body = json.loads(await request.read())
            prompt = "\n".join(message["content"] for message in body["messages"])
        except (ValueError, KeyError, TypeError):
            return failure(400, "the body is not a chat completion request")
        return await self.complete(request, body, prompt)

    async def complete(self, request: web.BaseRequest, body: dict[str, Any], prompt: str) -> web.StreamResponse:
        """Answer one chat completion request."""
        return web.json_response(completion(body, prompt, self._reply(prompt)))


def completion(body: dict[str, Any], prompt: str, text: str) -> dict[str, Any]:
    """The JSON of a chat completion that says `text`."""
    prompt_tokens, completion_tokens = len(prompt.split()), len(text.split())
    return {
        "id": "chatcmpl-local",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model"),
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def failure(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """An error in the API's own form."""
    return web.json_response({"error": {"message": message}}, status=status, headers=headers)


async def start(server: ChatServer, listener: socket.socket) -> web.ServerRunner:
    """Serve on a bound socket in the running event loop, until `cleanup()` of what is returned."""
    # Without an Application: routing and middlewares would be most of the work of a call.
    runner = web.ServerRunner(web.Server(server.handle, access_log=None), shutdown_timeout=1)
    await runner.setup()
    await web.SockSite(runner, listener, backlog=1024).start()
    return runner


def bind(port: int) -> socket.socket:
    """A loopback socket bound to `port`, or to a free one for 0. Raises UserError when it is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, port))
    except (OSError, OverflowError) as error:
        listener.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "another program is using it" if taken else str(error)
        raise UserError(
            f"the local server cannot listen on port {port}: {reason}; stop that program or choose another port."
        ) from None
    return listener


@contextlib.contextmanager
def serve(reply: str, port: int = 0) -> Iterator[str]:
    """Serve `reply` ("module:function") from a process of its own; yield the endpoint's base_url.

    `port` 0 takes a free one. Raises UserError when the port is taken or the function cannot be found.
    """
    with bind(port) as listener:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, reply, str(listener.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # Ctrl-C is for the parent, whose end then ends this one
        )
        address = listener.getsockname()[1]
        # The child has its own copy of the socket, and it alone may accept.
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"ready\n":
            raise UserError(f"the local server of {reply} did not start (exit status {process.wait()}); see above.")
        yield f"http://{_HOST}:{address}/v1"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


async def _serve(reply: str, descriptor: int, parent: int) -> None:
    end_with_parent(parent)
    module, _, name = reply.partition(":")
    function = getattr(importlib.import_module(module), name)
    runner = await start(ChatServer(function), socket.socket(fileno=descriptor))  # serves for as long as it is kept
    print("ready", flush=True)
    await asyncio.Event().wait()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], *map(int, sys.argv[2:])))
