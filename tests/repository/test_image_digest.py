"""The base image's digest, compared with a registry on loopback; what stays out of the image."""

import hashlib
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from container.image_digest import DOCKERFILE, Image, compare, pinned_image

MANIFEST = b'{"schemaVersion": 2, "manifests": []}'
NEWER = b'{"schemaVersion": 2, "manifests": [], "annotations": {}}'


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Registry(BaseHTTPRequestHandler):
    """The parts of the distribution API that a pull begins with: a challenge, a token, manifests."""

    def do_GET(self):
        url = urlsplit(self.path)
        if url.path == "/token":
            assert parse_qs(url.query) == {"service": ["here"], "scope": ["repository:nvidia/cuda:pull"]}
            return self.answer(200, json.dumps({"token": "anonymous"}).encode())
        if self.headers.get("Authorization") != "Bearer anonymous":
            challenge = f'Bearer realm="{self.server.url}/token",service="here",scope="repository:nvidia/cuda:pull"'
            return self.answer(401, b"", {"WWW-Authenticate": challenge})
        content = self.server.manifests.get(url.path.removeprefix("/v2/nvidia/cuda/manifests/"))
        return self.answer(404, b"") if content is None else self.answer(200, content)

    def answer(self, status, content, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def registry():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.manifests = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("manifests", "same", "words"),
    [
        ({digest(MANIFEST): MANIFEST, "13": MANIFEST}, True, "its tag points there"),
        ({digest(MANIFEST): MANIFEST, "13": NEWER}, True, f"moved on to {digest(NEWER)}"),
        ({digest(MANIFEST): MANIFEST}, True, "moved on to gone"),
        ({"13": NEWER}, False, f"its tag is {digest(NEWER)}"),
        ({digest(MANIFEST): NEWER, "13": NEWER}, False, "with bytes whose digest is"),
    ],
)
def test_the_registry_is_asked_for_the_pinned_bytes_and_the_tag(registry, manifests, same, words):
    registry.manifests = manifests
    image = Image(registry=registry.url, repository="nvidia/cuda", tag="13", digest=digest(MANIFEST))
    found, sentence = compare(image)
    assert found is same and words in sentence


def test_a_registry_that_cannot_be_reached_is_an_error_and_not_a_pass(registry):
    image = Image(registry=registry.url, repository="nvidia/cuda", tag="13", digest=digest(MANIFEST))
    registry.shutdown()
    registry.server_close()
    with pytest.raises(OSError):
        compare(image)


def test_the_dockerfile_pins_its_base_by_digest():
    image = pinned_image(DOCKERFILE.read_text())
    assert (image.registry, image.repository) == ("https://registry-1.docker.io", "nvidia/cuda")
    other = pinned_image(f"ARG BASE_IMAGE=ghcr.io/a/b:1.2@{digest(b'')}\n")
    assert other == replace(image, registry="https://ghcr.io", repository="a/b", tag="1.2", digest=digest(b""))
    with pytest.raises(ValueError, match="no line ARG BASE_IMAGE"):
        pinned_image("ARG BASE_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu24.04\n")
