"""One OpenAI-compatible endpoint: a client for it, and what its errors mean in plain words.

Nothing here ever quotes the key: servers echo it, so whatever came from outside is redacted, and
exceptions are re-raised without their cause.
"""

import email.utils
import json
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pipeline.api.config import EndpointConfig
from pipeline.common.errors import UserError
from pipeline.common.text import one_line

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SHORTEST_KEY = 12


class EndpointError(Exception):
    """A request that failed: `retry` says whether sending it again can help.

    `status` is the HTTP status, or None when no reply came; `pause_s` what the server asked to wait;
    `code` the API's error code, if any; `unreachable` that no connection could be made.
    """

    def __init__(
        self,
        message: str,
        *,
        retry: bool,
        status: int | None = None,
        pause_s: float | None = None,
        code: str | None = None,
        unreachable: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry = retry
        self.status = status
        self.pause_s = pause_s
        self.code = code
        self.unreachable = unreachable


class Endpoint:
    """Chat completions of one judge's endpoint, by openai.AsyncOpenAI. An async context manager."""

    def __init__(self, config: EndpointConfig) -> None:
        import httpx2
        import openai

        from pipeline.api.transport import AiohttpTransport

        self._key = read_key(config)
        try:
            httpx2.URL(config.endpoint)
        except httpx2.InvalidURL as error:
            raise UserError(
                f"{config.kind} {config.model}: base_url {config.base_url!r} cannot be used: {error}."
            ) from None
        self._timeout_s = config.timeout_s
        self._pattern: tuple[str, dict[str, str]] | None = None
        self.where = config.base_url or "api.openai.com"
        loopback = config.base_url is not None and urlsplit(config.base_url).hostname in _LOOPBACK
        self._transport = AiohttpTransport(
            connections=config.concurrency,
            timeout_s=config.timeout_s,
            trust_env=not loopback,  # a proxy cannot reach this machine's own server
        )
        self.client = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=config.endpoint,
            max_retries=0,
            timeout=config.timeout_s,
            # A redirected request would go to an address that nobody wrote down, perhaps as a GET.
            http_client=httpx2.AsyncClient(transport=self._transport, follow_redirects=False),
        )

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def complete(self, body: dict[str, Any]) -> Any:
        """Send one chat completion; return the reply's JSON. Raises EndpointError."""
        import httpx2
        import openai

        from pipeline.api.transport import TooLargeError

        try:
            status, headers, content = await self._post(body)
        except (openai.APIConnectionError, httpx2.TransportError) as error:
            cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
            if unreachable := isinstance(cause, httpx2.ConnectError):
                reason = str(cause)
            elif isinstance(cause, httpx2.TimeoutException):
                reason = f"no reply within {self._timeout_s:g} s"
            else:
                reason = str(cause) if isinstance(cause, TooLargeError) else "the connection broke"
            raise EndpointError(f"{self.where}: {reason}", retry=True, unreachable=unreachable) from None
        if not 200 <= status < 300:
            raise self.explain(status, headers, content)
        payload = read_json_body(self.without_key(content))
        if payload is None:
            raise EndpointError(f"{self.where} sent broken JSON", retry=True)
        if isinstance(payload, dict) and payload.get("error") and not payload.get("choices"):
            reason, code = _reason(payload)
            raise EndpointError(f"{self.where} answered with an error: {self.redact(reason)}", retry=True, code=code)
        return payload

    async def _post(self, body: dict[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Send one chat completion as the openai client does: the reply's status, headers and body.

        That client builds and sends the first; the others are that one with another body, over the same
        connections, since all but the body comes out the same each time. Its own way at its fastest
        (`DefaultAioHttpClient`, replies untyped) takes 1.2 ms of CPU a call where this and the cache take 0.5:
        551 against 989 requests/s at 64 in flight and 50 ms of latency (benchmarks/results/judge.json).
        """
        import httpx2
        import openai

        if self._pattern is None:
            try:
                # Not chat.completions.create, which would type the reply: all of its JSON is wanted.
                response = await self.client.post("/chat/completions", body=body, cast_to=httpx2.Response)
            except openai.APIStatusError as error:
                return error.response.status_code, error.response.headers, error.response.content
            headers = dict(response.request.headers)
            del headers["content-length"]
            self._pattern = (str(response.request.url), headers)
            return response.status_code, response.headers, response.content
        url, headers = self._pattern
        return await self._transport.send("POST", url, headers, json.dumps(body, ensure_ascii=False).encode())

    def explain(self, status: int, headers: Mapping[str, str], content: bytes) -> EndpointError:
        """The endpoint's refusal (any HTTP status but 2xx) as an EndpointError, without the key."""
        if 300 <= status < 400:
            where = self.redact(headers.get("location", "nowhere"))
            return EndpointError(
                f"{self.where} redirects to {where} (HTTP {status}); if you trust that, make it the base_url",
                retry=False,
                status=status,
            )
        message, code = _reason(read_json_body(content))
        return EndpointError(
            f"{self.where} answered HTTP {status}: {self.redact(message) or 'no reason given'}",
            retry=status in (408, 409, 429) or status >= 500,
            status=status,
            code=code,
            pause_s=retry_after_s(headers),
        )

    def redact(self, text: str) -> str:
        """`text` on one line, shortened, and without the key."""
        return one_line(text.replace(self._key, "[key]") if self._key else text, 300)

    def without_key(self, content: bytes) -> bytes:
        """A body without the key, should the server have put it there."""
        # Keys of local servers may be words like EMPTY, which a judge may say as well.
        if self._key is None or len(self._key) < _SHORTEST_KEY:
            return content
        return content.replace(self._key.encode(), b"[key]")


def read_json_body(content: bytes) -> Any:
    """The JSON of a body; None for null, for what is no JSON (NaN is none), and for what is too deep to be read."""
    try:
        return json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError):  # not JSON, not even text, or numbers too long
        return None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _reason(said: Any) -> tuple[str, str | None]:
    """The message and code of an error, in the forms that servers give it: an object, a text, or neither."""
    error = said.get("error") or said if isinstance(said, dict) else None
    if isinstance(error, str):
        return error, None
    if not isinstance(error, dict):
        return "", None
    code = error.get("code")
    return str(error.get("message") or error.get("detail") or ""), code if isinstance(code, str) else None


def read_key(config: EndpointConfig) -> str | None:
    """The key from the environment variable that the judge names. Raises UserError, never quoting it."""
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise UserError(
            f"{config.kind} {config.model}: environment variable {config.api_key_env} is not set; put the key there."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{config.kind} {config.model}: {config.api_key_env} holds characters that no API key has.")
    return key


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds that a reply's `retry-after-ms` or `Retry-After` (seconds or an HTTP date) asks to wait."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1000)
        if (value := headers.get("retry-after")) is None:
            return None
        if value.strip().replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def fatal(error: EndpointError, config: EndpointConfig) -> UserError | None:
    """The sentence to stop with when no request to this endpoint can succeed, None when others may."""
    where = f"{config.kind} {config.model}"
    if error.status == 401:
        return UserError(f"{where}: the endpoint does not accept the key in {config.api_key_env or 'api_key_env'}.")
    if error.status == 403:
        return UserError(f"{where}: the key in {config.api_key_env} may not use this model.")
    if error.status == 404:
        return UserError(f"{where}: {config.base_url or 'OpenAI'} has no such model; check model and base_url.")
    if error.code == "insufficient_quota" or error.status == 402:
        return UserError(f"{where}: the account is out of credit; what was answered is kept, run again to continue.")
    return None
