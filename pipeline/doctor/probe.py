"""Does a server answer? One short request each, all at once; no key reaches another host, or a message."""

import http.client
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

ANSWER_S = 5.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def probe_all(questions: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Ask all at once; leave out what has not answered in ANSWER_S seconds, whatever it hangs on."""
    answers: dict[str, Any] = {}

    def put(name: str, question: Callable[[], Any]) -> None:
        answers[name] = question()

    threads = [threading.Thread(target=put, args=item, daemon=True) for item in questions.items()]
    for thread in threads:
        thread.start()
    end = time.monotonic() + ANSWER_S
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return dict(answers)


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer; following it would hand the token to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _request(url: str, key: str | None, method: str) -> urllib.request.Request:
    headers = {"User-Agent": "emoe-doctor"} | ({"Authorization": f"Bearer {key}"} if key else {})
    return urllib.request.Request(url, headers=headers, method=method)


def open_reply(url: str, key: str | None, method: str = "GET") -> Any:
    """The open reply to a request. Raises OSError, HTTPException or ValueError; none of them is to be printed."""
    request = _request(url, key, method)
    # A proxy cannot reach this machine's own server.
    proxies = [urllib.request.ProxyHandler({})] if urlsplit(request.full_url).hostname in _LOOPBACK else []
    return urllib.request.build_opener(_Stay, *proxies).open(request, timeout=ANSWER_S)


def http_status(url: str, key: str | None, method: str = "HEAD") -> int | None:
    """The HTTP status of a request, None where no reply comes. Never quotes the key."""
    try:
        with open_reply(url, key, method) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException, ValueError):
        return None
