"""HTTP on aiohttp, for our own requests and, as a transport of httpx, for the openai client's.

Why not openai's own aiohttp transport: with it a core tops out at 400 calls/s (687 with replies untyped), this way
at 1,900 with the cache's work included (benchmarks/results/judge.json).
"""

import select
from collections.abc import Mapping
from typing import Any

import aiohttp
import httpx2

MOST_BYTES = 4 << 20  # of a reply; chat completions take some thousand
MOST_FILE_BYTES = 1 << 30  # of a batch's results
# All that an endpoint needs of what the openai client sets. What that client reads from the environment
# (OPENAI_ORG_ID, OPENAI_PROJECT_ID, OPENAI_CUSTOM_HEADERS) is sent to nobody: a stage does not see it either.
_PASSED_ON = ("accept", "content-type")


class TooLargeError(httpx2.ReadError):
    """A body that no reply can be."""


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """Sends requests over pooled connections and reads each reply whole, up to a limit (decompressed).

    `headers` are sent with every request, `proxy` is the HTTP proxy to go through, None for none: neither proxies nor
    passwords (.netrc) are taken from the environment here. `timeout_s` is for a request as a whole, so a server that
    sends a byte now and then does not hold it for ever; one that comes by httpx2 brings its own. Make it in a running
    event loop.
    """

    def __init__(self, *, connections: int, timeout_s: float, headers: Mapping[str, str], proxy: str | None) -> None:
        self._timeout_s = timeout_s
        self._headers = dict(headers)
        self._proxy = proxy
        self._session = aiohttp.ClientSession(
            connector=_Connector(limit=connections),
            trust_env=False,
            skip_auto_headers=("User-Agent", "Content-Type"),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes,
        *,
        most_bytes: int = MOST_BYTES,
        timeout_s: float | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send one request; return the reply's status, headers and body.

        Raises httpx2.ConnectError when no connection can be made, TooLargeError for a body of more than
        `most_bytes`, ReadTimeout and ReadError for what else goes wrong later.
        """
        timeout = aiohttp.ClientTimeout(total=self._timeout_s if timeout_s is None else timeout_s)
        try:
            async with self._session.request(
                method,
                url,
                headers={**headers, **self._headers},
                data=content or None,
                proxy=self._proxy,
                allow_redirects=False,  # it would go to an address that nobody wrote down, perhaps as a GET
                timeout=timeout,
            ) as response:
                body = bytearray()
                # Piece by piece: a body can be endless, or small as sent and huge as decompressed.
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) > most_bytes:
                        response.close()
                        raise TooLargeError(f"a reply of more than {most_bytes:,} bytes")
                return response.status, response.headers, bytes(body)
        except aiohttp.ClientConnectorError as error:
            raise httpx2.ConnectError(f"cannot connect: {error.os_error}") from error
        except aiohttp.ClientHttpProxyError as error:
            raise httpx2.ConnectError(f"the proxy refuses (HTTP {error.status})") from error
        except UnicodeError as error:  # a host name that no name server can be asked for
            raise httpx2.ConnectError(f"cannot connect: {error}") from error
        except TimeoutError as error:
            raise httpx2.ReadTimeout("no complete reply in time") from error
        except aiohttp.ClientError as error:
            raise httpx2.ReadError(str(error)) from error

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request for httpx2."""
        most_bytes = MOST_FILE_BYTES if request.url.path.endswith("/content") else MOST_BYTES
        status, headers, content = await self.send(
            request.method,
            str(request.url),
            {name: value for name, value in request.headers.items() if name in _PASSED_ON},
            await request.aread(),
            most_bytes=most_bytes,
            timeout_s=request.extensions["timeout"]["read"],
        )
        # aiohttp has decompressed the body already.
        kept = [(name, value) for name, value in headers.items() if name.lower() != "content-encoding"]
        return httpx2.Response(status, headers=kept, content=content, request=request)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._session.close()


class _Connector(aiohttp.TCPConnector):
    """Pooled connections, without those on which something came that no request had asked for.

    aiohttp reads such bytes (a reply after its request was given up, or sent twice) as the next request's reply.
    """

    async def _get(self, key: Any, traces: Any) -> Any:
        while (connection := await super()._get(key, traces)) is not None:
            protocol: Any = connection.protocol
            if not (protocol.should_close or _unread(protocol.transport)):
                return connection
            connection.close()
        return None


def _unread(transport: Any) -> bool:
    """Whether the kernel holds bytes, or the end, of a connection that the event loop has not read yet."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))
