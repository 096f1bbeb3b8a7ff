"""One OpenAI-compatible endpoint: a connection to it.

Nothing here ever quotes the key: servers echo it, so whatever came from outside is decoded and then rid of it, and
exceptions are re-raised without their cause.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.api.config import EndpointConfig
from pipeline.api.faults import EndpointError, error_inside, read_json_body, refused
from pipeline.api.keys import Redaction, read_key
from pipeline.api.proxies import proxy_for
from pipeline.common.errors import UserError

if TYPE_CHECKING:
    import httpx2
    import openai


class Endpoint:
    """Chat completions of one endpoint, and the openai client for all else. An async context manager."""

    def __init__(self, config: EndpointConfig) -> None:
        import httpx2

        from pipeline.api.transport import AiohttpTransport

        self._config = config
        self._key = read_key(config)
        self._redaction = Redaction(self._key)
        try:
            httpx2.URL(config.endpoint)
        except httpx2.InvalidURL as error:
            raise UserError(
                f"{config.kind} {config.model}: base_url {config.base_url!r} cannot be used: {error}."
            ) from None
        self.where = config.base_url or "api.openai.com"
        self._transport = AiohttpTransport(
            connections=config.concurrency,
            timeout_s=config.timeout_s,
            headers={"User-Agent": "emoe"} | ({} if self._key is None else {"Authorization": f"Bearer {self._key}"}),
            proxy=proxy_for(config.endpoint),
        )

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.aclose()

    @cached_property
    def client(self) -> "openai.AsyncOpenAI":
        """The openai client over the same connections: for files, batches and fine-tuning jobs."""
        import httpx2
        import openai

        return openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=self._config.endpoint,
            max_retries=0,
            timeout=self._config.timeout_s,
            http_client=httpx2.AsyncClient(transport=self._transport, trust_env=False, follow_redirects=False),
        )

    async def complete(self, body: dict[str, Any]) -> Any:
        """Send one chat completion; return the reply's JSON, without the key. Raises EndpointError.

        Not by the openai client: its own way at its fastest (`DefaultAioHttpClient`, replies untyped) takes 1.2 ms of
        CPU a call where this and the cache take 0.5 (benchmarks/results/judge.json).
        """
        import httpx2

        url = f"{self._config.endpoint}/chat/completions"
        content = json.dumps(body, ensure_ascii=False).encode()
        try:
            status, headers, content = await self._transport.send(
                "POST", url, {"Content-Type": "application/json", "Accept": "application/json"}, content
            )
        except httpx2.TransportError as error:
            raise self._broken(error) from None
        payload = self.read(content)
        if not 200 <= status < 300:
            raise self.explain(status, headers, content)
        if payload is None:
            raise EndpointError(f"{self.where} sent broken JSON", retry=True)
        if fault := error_inside(self.where, headers, payload):
            raise self._without_key(fault)
        return payload

    def read(self, content: bytes) -> Any:
        """The JSON of a body without the key, None where it is none."""
        return self._redaction.json(read_json_body(content))

    def explain(self, status: int, headers: Mapping[str, str], content: bytes) -> EndpointError:
        """The endpoint's refusal (any HTTP status but 2xx) as an EndpointError, without the key."""
        said = headers.get("location", "nowhere") if 300 <= status < 400 else self.read(content)
        return self._without_key(refused(self.where, status, headers, said))

    def redact(self, text: str) -> str:
        """`text` on one line, shortened, and without the key."""
        return self._redaction.line(text)

    def _without_key(self, error: EndpointError) -> EndpointError:
        error.args = (self.redact(str(error)),)
        return error

    def _broken(self, error: "httpx2.TransportError") -> EndpointError:
        import httpx2

        from pipeline.api.transport import TooLargeError

        unreachable = isinstance(error, httpx2.ConnectError)
        if isinstance(error, httpx2.TimeoutException):
            reason = f"no reply within {self._config.timeout_s:g} s"
        else:
            reason = str(error) if unreachable or isinstance(error, TooLargeError) else "the connection broke"
        return EndpointError(
            f"{self.where}: {reason}", retry=True, unreachable=unreachable, usd=0.0 if unreachable else None
        )
