"""What an endpoint's failures mean: whether to send again, when, what it cost, and what to tell the user."""

import email.utils
import json
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pipeline.api.config import EndpointConfig
from pipeline.common.errors import UserError

_TRANSIENT = (408, 409, 425, 429)
_STATUS_OF_CODE = {"rate_limit_exceeded": 429, "insufficient_quota": 402, "server_error": 500}


class EndpointError(Exception):
    """A request that failed: `retry` says whether sending it again can help.

    `status` is the HTTP status (or the one that an error inside HTTP 200 stands for), None when no reply came;
    `pause_s` what the server asked to wait; `code` the API's error code, if any; `unreachable` that no connection
    could be made. `usd` is what the request cost all the same, None where that cannot be known.
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
        usd: float | None = None,
    ) -> None:
        super().__init__(message)
        self.retry = retry
        self.status = status
        self.pause_s = pause_s
        self.code = code
        self.unreachable = unreachable
        self.usd = usd


def refused(where: str, status: int, headers: Mapping[str, str], said: Any) -> EndpointError:
    """An HTTP status other than 2xx as an error. `said` is the decoded body, the key taken out. It costs nothing."""
    if 300 <= status < 400:
        return EndpointError(
            f"{where} redirects to {said} (HTTP {status}); if you trust that, make it the base_url",
            retry=False,
            status=status,
            usd=0.0,
        )
    message, code = _reason(said)
    return EndpointError(
        f"{where} answered HTTP {status}: {message or 'no reason given'}",
        retry=status in _TRANSIENT or status >= 500,
        status=status,
        code=code,
        pause_s=retry_after_s(headers),
        usd=0.0,
    )


def error_inside(where: str, headers: Mapping[str, str], payload: Any) -> EndpointError | None:
    """The error that a body of HTTP 200 holds in place of choices, None where it holds none.

    A code in it that is an HTTP status (429, "402") or stands for one is taken as that status.
    """
    if not isinstance(payload, dict) or payload.get("choices"):
        return None
    if not any(payload.get(name) for name in ("error", "message", "detail")):
        return None
    inner = payload.get("error")
    error = inner if isinstance(inner, dict) else payload
    for name in ("code", "status", "type"):
        if (status := _status(error.get(name))) is not None:
            return refused(where, status, headers, payload)
    message, code = _reason(payload)
    return EndpointError(f"{where} answered with an error: {message}", retry=True, code=code, usd=0.0)


def _status(code: Any) -> int | None:
    if isinstance(code, str):
        code = int(code) if code.isascii() and code.isdigit() and len(code) == 3 else _STATUS_OF_CODE.get(code)
    return code if type(code) is int and 400 <= code < 600 else None


def _reason(said: Any) -> tuple[str, str | None]:
    """The message and code of an error, in the forms that servers give it: an object, a text, or neither."""
    error = said.get("error") or said if isinstance(said, dict) else None
    if isinstance(error, str):
        return error, None
    if not isinstance(error, dict):
        return "", None
    code = error.get("code")
    return str(error.get("message") or error.get("detail") or ""), code if isinstance(code, str) else None


def read_json_body(content: bytes) -> Any:
    """The JSON of a body; None for null, for what is no JSON (NaN is none), and for what is too deep to be read."""
    try:
        return json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError):  # not JSON, not even text, or numbers too long
        return None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds that a reply's `retry-after-ms` or `Retry-After` (seconds or an HTTP date) asks to wait.

    A date is compared with the server's own clock, which its `Date` header tells (RFC 9110, 10.2.3 and 6.6.1).
    """
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return _finite(float(milliseconds) / 1000)
        if (value := headers.get("retry-after")) is None:
            return None
        if value.strip().replace(".", "", 1).isdigit():
            return _finite(float(value))
        until = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError, TypeError):
        return None
    return max(0.0, until - _server_time(headers))


def _finite(seconds: float) -> float | None:
    return max(0.0, seconds) if seconds < float("inf") else None


def _server_time(headers: Mapping[str, str]) -> float:
    try:
        said: datetime = email.utils.parsedate_to_datetime(headers["date"])
        return said.timestamp()
    except (KeyError, ValueError, OverflowError, TypeError):
        return time.time()


def fatal(error: EndpointError, config: EndpointConfig, *, worked: bool) -> UserError | None:
    """The sentence to stop with when no request to this endpoint can succeed, None when others may.

    `worked`: it has answered with this key and model before, so that 401 and 404 do not mean that they are wrong.
    """
    where = f"{config.kind} {config.model}"
    if error.code == "insufficient_quota" or error.status == 402:
        return UserError(f"{where}: the account is out of credit; what was answered is kept, run again to continue.")
    if error.status not in (401, 404):
        return None
    if worked:
        return UserError(f"{where} had answered, and now: {error}; what was answered is kept, run again to continue.")
    if error.status == 401:
        return UserError(
            f"{where}: the endpoint does not accept the key in {config.api_key_env or 'api_key_env'} ({error})."
        )
    return UserError(f"{where}: {config.base_url or 'OpenAI'} has no such model; check model and base_url ({error}).")
