"""Downloads end, whatever a server sends."""

import http.server
import io
import threading
import time

import pytest

from pipeline.common.errors import UserError
from pipeline.data.upstream import download as module
from pipeline.data.upstream.download import UnreachableError, download


@pytest.fixture
def server():
    """A server that answers as its `answer(handler)` says."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked += 1
            self.server.answer(self)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        served.asked, served.daemon_threads = 0, True
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield served
        served.shutdown()


def fetch(server):
    stream = io.BytesIO()
    download(f"http://127.0.0.1:{server.server_address[1]}/x", stream, None, lambda *_: None)
    return stream.getvalue()


def test_a_body_without_end_and_without_a_pinned_size_ends(server, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 100_000)

    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 65536)

    server.answer = answer
    with pytest.raises(UserError, match="sends more than the 100000 bytes expected"):
        fetch(server)


def test_a_length_that_is_no_number_is_none(server):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "abc")
        handler.end_headers()
        handler.wfile.write(b"whole")

    server.answer = answer
    assert fetch(server) == b"whole"


def test_a_server_that_drips_is_left(server, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 1.0)  # ten times what is between two bytes
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.0)

    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(60):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.1)

    server.answer = answer
    with pytest.raises(UnreachableError, match="bytes in"):
        fetch(server)
    assert server.asked == 2


def test_a_busy_server_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.0)

    def answer(handler):
        handler.send_response(503 if server.asked < 3 else 200)
        handler.end_headers()
        handler.wfile.write(b"" if server.asked < 3 else b"whole")

    server.answer = answer
    assert fetch(server) == b"whole" and server.asked == 3
