"""One file over HTTP, appended to what has already arrived."""

import http
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import BinaryIO

import tenacity

from pipeline.common.errors import UserError

BLOCK = 64 * 1024
TIMEOUT_SECONDS = 30.0
ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 1.0
# Where no size is pinned: more than ten times the largest such file (the authors' notebook).
MOST_BYTES = 50_000_000
SLOWEST_BYTES_PER_S = 1000
BUSY = frozenset({408, 429, 500, 502, 503, 504})

Progress = Callable[[int, int | None], None]


class UnreachableError(Exception):
    """The server could not be reached, or stopped answering, however often it was asked."""


class BusyError(UnreachableError):
    """The server was reached, and did not hand this file over to its end, however often it was asked."""


def download(url: str, stream: BinaryIO, limit: int | None, progress: Progress) -> None:
    """Fetch `url` into `stream`, continuing at its end.

    Transient failures are tried again, each time from where the last one stopped. `limit` is the size in bytes beyond
    which this cannot be the wanted file (None: MOST_BYTES); `progress(done, total)` is called with bytes.
    Raises UnreachableError after the last attempt, and UserError where asking again cannot help: HTTP
    says no, too many bytes come, the disk is full. What has arrived stays in `stream`.
    """
    again = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(UnreachableError),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_exponential(multiplier=FIRST_PAUSE_SECONDS),
        reraise=True,
        sleep=time.sleep,
    )
    again(_try, url, stream, MOST_BYTES if limit is None else limit, progress)


def _try(url: str, stream: BinaryIO, limit: int, progress: Progress) -> None:
    try:
        _continue(url, stream, limit, progress)
    except urllib.error.HTTPError as error:
        if error.code not in BUSY:
            raise UserError(f"{url} answers HTTP {error.code} ({error.reason}).") from error
        raise BusyError(f"HTTP {error.code}") from error
    except urllib.error.URLError as error:
        raise UnreachableError(str(error.reason)) from error
    except TimeoutError as error:
        raise UnreachableError(str(error) or type(error).__name__) from error
    except (http.client.HTTPException, ConnectionError) as error:
        raise BusyError(str(error) or type(error).__name__) from error


def _continue(url: str, stream: BinaryIO, limit: int, progress: Progress) -> None:
    start = stream.seek(0, 2)
    if start and start == limit:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            # Nothing follows what has arrived: it is whole.
            return
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
            stream.seek(0)
            stream.truncate()
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        done, since = start, time.monotonic()
        progress(done, total)
        while block := response.read1(BLOCK):
            _write(stream, block)
            done += len(block)
            progress(done, total)
            seconds = time.monotonic() - since
            if seconds > TIMEOUT_SECONDS and (done - start) / seconds < SLOWEST_BYTES_PER_S:
                raise TimeoutError(f"{done - start} bytes in {seconds:.0f} s")
            if done > limit:
                raise UserError(f"{url} sends more than the {limit} bytes expected: it is another file.")
    # http.client returns what there is, without an error, when a connection ends early.
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def _write(stream: BinaryIO, block: bytes) -> None:
    try:
        stream.write(block)
        stream.flush()
    except OSError as error:
        raise UserError(f"cannot write {stream.name}: {error.strerror}.") from error
