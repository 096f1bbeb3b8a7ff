"""A judge that says 85 to everything after a fixed time, with as little work as an HTTP server can do.

    python -m benchmarks.latency_server LATENCY_S

It prints its base_url and serves until stdin closes. One core of it answers several thousand requests a
second, so that what a benchmark finds out is the client's limit. Only for clients that keep connections open
and send a Content-Length.
"""

import asyncio
import json
import re
import sys

from pipeline.api.local_server import completion

_LENGTH = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)
_BODY = json.dumps(completion({"model": "scripted"}, "a prompt of some words", "85")).encode()
_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


class Connection(asyncio.Protocol):
    """One client's connection: every complete request is answered `latency_s` later."""

    def __init__(self, latency_s: float) -> None:
        self._latency_s = latency_s
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to answer on."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete now."""
        self._received += data
        while True:
            head, end, rest = self._received.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if not end or length is None or len(rest) < int(length[1]):
                return
            self._received = rest[int(length[1]) :]
            asyncio.get_running_loop().call_later(self._latency_s, self._transport.write, _RESPONSE)


async def serve(latency_s: float) -> None:
    """Serve on a free loopback port until stdin closes."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(latency_s), "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
