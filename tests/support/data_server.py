"""A loopback HTTP server that serves files as GitHub does, and fails as told."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Upstream:
    """A loopback server: files by path, and what it does wrong."""

    files: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, list[int | None]] = field(default_factory=dict)  # a status, or None: drop half-way
    ranges: bool = True
    stall_at: int | None = None
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve() -> Iterator[Upstream]:
    """A running server; what is set on it holds from the next request."""
    state = Upstream()
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, wanted = self.path.lstrip("/"), self.headers.get("Range")
            state.requests.append((path, wanted))
            failure = state.failures[path].pop(0) if state.failures.get(path) else 0
            content = state.files.get(path)
            if failure or content is None:
                self.send_error(failure or 404)
                return
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and state.ranges else 0
            if start and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = len(content) // 2 if failure is None else state.stall_at or len(content)
            self.wfile.write(content[start:end])
            self.wfile.flush()
            if state.stall_at:
                released.wait(120)
            if failure is None:
                self.connection.close()

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.handle_error = lambda *_: None  # type: ignore[method-assign]
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    released.set()
    httpd.shutdown()
    httpd.server_close()
