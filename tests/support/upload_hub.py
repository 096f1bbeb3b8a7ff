"""A Hugging Face hub on loopback that takes uploads: what huggingface_hub asks for, in memory, or a refusal."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_loopbackToken0123456789"


@dataclass
class Hub:
    """What the hub has been told, in order: (what, repository, about), and the files of each repository."""

    endpoint: str = ""
    refuse: str = ""
    events: list[tuple[str, str, Any]] = field(default_factory=list)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)


@contextmanager
def hub_server(refuse: str = "") -> Iterator[Hub]:
    """A hub that answers until the block ends; requests whose path has `refuse` in it get a 403."""
    hub = Hub(refuse=refuse)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer({"name": "someone", "type": "user"} if "whoami" in self.path else [])

        def do_PUT(self) -> None:
            hub.events.append(("settings", self._repository(), json.loads(self._body())))
            self._answer({})

        def do_POST(self) -> None:
            body = self._body()
            if self.path.endswith("/repos/create"):
                about = json.loads(body)
                hub.events.append(("create", about["name"], about))
                self._answer({"url": f"{hub.endpoint}/someone/{about['name']}"})
            elif "/preupload/" in self.path:
                names = [it["path"] for it in json.loads(body)["files"]]
                modes = [{"path": it, "uploadMode": "regular", "shouldIgnore": False} for it in names]
                self._answer({"files": modes})
            elif "/commit/" in self.path:
                lines = [json.loads(line) for line in body.splitlines()]
                files = {
                    it["value"]["path"]: base64.b64decode(it["value"]["content"]) for it in lines if it["key"] == "file"
                }
                hub.events.append(("commit", self._repository(), sorted(files)))
                hub.files[self._repository()] = files
                self._answer({"commitUrl": f"{hub.endpoint}/someone/x/commit/{'0' * 40}", "commitOid": "0" * 40})
            else:
                self._answer({"errors": [], "warnings": []})

        def _repository(self) -> str:
            found = re.match(r"/api/(?:model|dataset)s/someone/([^/]+)/", self.path)
            assert found, self.path
            return found[1]

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _answer(self, value: Any) -> None:
            allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}" and not (
                hub.refuse and hub.refuse in self.path
            )
            content = json.dumps(value if allowed else {"error": "Forbidden"}).encode()
            self.send_response(200 if allowed else 403)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
