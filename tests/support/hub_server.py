"""A loopback Hugging Face hub, for HF_ENDPOINT: whole repositories, as a hub lists and serves them.

What the real one does and a folder of files does not: lists by pages, with folders among the files; small files
behind a relative redirect, named by git's blob id; large ones as LFS, named by SHA-256, behind a redirect to another
host, which refuses a request that brings the hub's token; gated repositories that show their list but not their
files (401 without a token, 403 with one that was not accepted); repositories that do not exist (401, to hide private
ones); commits that vanished. And what goes wrong on the way: see `Hub`. Xet, which needs a server of chunks, is left
out: clients then use LFS, as they do where hf_xet is missing.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_marker_that_was_accepted"
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".model", "tokenizer.json")
PAGE = 8
CHUNK = 1 << 20

GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
# What repositories hold beside the checkpoint that is loaded (read off their file lists).
ELSE: dict[str, tuple[str, ...]] = {
    "mixtral": (*(f"consolidated.{part:02}.pt" for part in range(8)), "tokenizer.model"),
    "qwen3_moe": ("LICENSE", "merges.txt", "vocab.json"),
    "gpt_oss": (
        "LICENSE", "USAGE_POLICY", "metal/model.bin", "original/config.json", "original/dtypes.json",
        "original/model.safetensors",
    ),
    "llama": ("LICENSE", "USE_POLICY.md", "original/consolidated.00.pth", "original/params.json",
              "original/tokenizer.model"),
    "qwen2": ("LICENSE", "merges.txt", "vocab.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    "gemma3_text": ("added_tokens.json", "preprocessor_config.json", "processor_config.json", "tokenizer.model"),
}  # fmt: skip


def whole_repository(folder: Path, family: str) -> dict[str, bytes | Path]:
    """The checkpoint in `folder` amid all that its family's repositories hold: other weights are there, unreadable."""
    files: dict[str, bytes | Path] = {name: f"not for us: {name}\n".encode() for name in ELSE[family]}
    files |= {name: b"{}" for name in ELSE[family] if name.endswith(".json")}
    files |= {"README.md": b"---\nlicense: other\n---\n# A model\n", ".gitattributes": GITATTRIBUTES.encode()}
    return files | {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Stored:
    """A file of a repository, with the names that git and LFS have for it."""

    content: bytes | Path
    size: int
    sha256: str
    blob_id: str
    lfs: bool

    def read(self, start: int, length: int) -> Iterator[bytes]:
        """`length` bytes from `start`, in pieces."""
        if isinstance(self.content, bytes):
            yield self.content[start : start + length]
            return
        with self.content.open("rb") as stream:
            stream.seek(start)
            while length > 0 and (piece := stream.read(min(CHUNK, length))):
                length -= len(piece)
                yield piece


@dataclass
class Repository:
    """One repository: its files by path, at one commit. gated: its files need a token that was accepted."""

    revision: str
    files: dict[str, Stored]
    gated: bool = False


@dataclass
class Hub:
    """A running hub, and what it does wrong from the next request on.

    statuses: the answers to requests for a file, by path, before it is served (429, 500, 503 ...). cuts: after how many
    bytes the connection of each download of a file is closed. served: other bytes than listed, of the same length, as
    from a mirror that was tampered with. requests: (method, path, token) of all that was asked of the hub itself.
    """

    url: str = ""
    elsewhere: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    served: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self, name: str, files: Mapping[str, bytes | Path], *, revision: str = SHA, gated: bool = False
    ) -> Repository:
        """Publish a repository, or another commit of it: the one before is gone."""
        stored = {path: store(path, content) for path, content in sorted(files.items())}
        self.repositories[name] = Repository(revision, stored, gated)
        return self.repositories[name]

    def next(self, plan: dict[str, list[int]], path: str) -> int | None:
        """What is planned for the next request for a file, if anything is."""
        with self.lock:
            return plan[path].pop(0) if plan.get(path) else None

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The variables under which a process takes this for the hub, and `home` for its cache."""
        names = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return names | ({"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"})


def store(path: str, content: bytes | Path) -> Stored:
    """A file as a repository holds it: LFS by .gitattributes, a git blob otherwise."""
    if isinstance(content, Path):
        size = content.stat().st_size
        with content.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    else:
        size, sha256 = len(content), hashlib.sha256(content).hexdigest()
    lfs = path.endswith(LFS_SUFFIXES)
    if lfs:
        blob = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    else:
        blob = content.read_bytes() if isinstance(content, Path) else content
    blob_id = hashlib.sha1(b"blob %d\0%b" % (len(blob), blob), usedforsecurity=False).hexdigest()
    return Stored(content, size, sha256, blob_id, lfs)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A running hub without repositories, and the other host that its large files come from."""
    hub = Hub()
    servers = [_listen(hub, _OfHub), _listen(hub, _Elsewhere)]
    hub.url, hub.elsewhere = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _listen(hub: Hub, handler: type["_Handler"]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type(handler.__name__, (handler,), {"hub": hub}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        parts = urlsplit(self.path)
        self.reply(unquote(parts.path), parse_qs(parts.query))

    do_HEAD = do_GET  # noqa: N815

    def reply(self, path: str, query: dict[str, list[str]]) -> None:
        raise NotImplementedError

    def log_message(self, *_: object) -> None:
        pass

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.say(status, json.dumps({"error": message}).encode(), X_Error_Code=code, X_Error_Message=message)

    def send_file(self, path: str, file: Stored, **headers: str) -> None:
        """The file, or the range of it that is asked for, or as much as is sent before the connection is cut."""
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        if start >= file.size > 0:
            self.say(416, Content_Range=f"bytes */{file.size}")
            return
        left = file.size - start
        self.send_response(206 if wanted else 200)
        ranged = {"Content-Range": f"bytes {start}-{file.size - 1}/{file.size}"} if wanted else {}
        for name, value in ({"Content-Length": str(left), "Accept-Ranges": "bytes"} | ranged | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.next(self.hub.cuts, path)
        if path in self.hub.served:
            file = Stored(self.hub.served[path], file.size, file.sha256, file.blob_id, file.lfs)
        for piece in file.read(start, left if cut is None else min(cut, left)):
            self.wfile.write(piece)
        if cut is not None and cut < left:
            self.wfile.flush()
            self.close_connection = True


class _OfHub(_Handler):
    def reply(self, path: str, query: dict[str, list[str]]) -> None:
        self.hub.requests.append((self.command, path, self.token))
        api = path.startswith("/api/models/")
        owner, name, *rest = (*path.removeprefix("/api/models").strip("/").split("/"), "", "")
        if path.startswith("/api/resolve-cache/models/"):
            owner, name, revision, *inside = path.removeprefix("/api/resolve-cache/models/").split("/")
            rest = ["cached", revision, *inside]
        repository = self.hub.repositories.get(f"{owner}/{name}")
        kind, revision, *inside = (*(part for part in rest if part), "", "")
        if repository is None:
            status = 404 if self.token else 401
            self.refuse(status, "RepoNotFound", "Repository not found")
        elif kind and revision not in (repository.revision, "main"):
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif api and kind == "tree":
            self.list_files(repository, path, int(query.get("cursor", ["0"])[0]))
        elif api:
            siblings = [{"rfilename": name} for name in repository.files]
            info = {"id": f"{owner}/{name}", "sha": repository.revision, "siblings": siblings}
            self.say(200, json.dumps(info | {"gated": "manual" if repository.gated else False}).encode())
        else:
            self.resolve(repository, f"{owner}/{name}", kind, "/".join(inside).strip("/"))

    def list_files(self, repository: Repository, path: str, start: int) -> None:
        entries: list[dict[str, Any]] = []
        for name, file in repository.files.items():
            folder = name.rpartition("/")[0]
            if folder and not any(entry["path"] == folder for entry in entries):
                entries.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": folder})
            entry = {"type": "file", "oid": file.blob_id, "size": file.size, "path": name}
            if file.lfs:
                entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
            entries.append(entry)
        more = {}
        if len(entries) > start + PAGE:
            more["Link"] = f'<{self.hub.url}{path}?recursive=True&cursor={start + PAGE}>; rel="next"'
        self.say(200, json.dumps(entries[start : start + PAGE]).encode(), **more)

    def resolve(self, repository: Repository, name: str, kind: str, path: str) -> None:
        status = self.hub.next(self.hub.statuses, path)
        file = repository.files.get(path)
        commit = {"X-Repo-Commit": repository.revision}
        if status is not None:
            self.say(status)
        elif repository.gated and self.token != TOKEN:
            message = f"Access to model {name} is restricted and you are not in the authorized list."
            self.refuse(403 if self.token else 401, "GatedRepo", message)
        elif file is None:
            self.refuse(404, "EntryNotFound", "Entry not found")
        elif file.lfs:
            linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
            self.say(302, **commit, **linked, Location=f"{self.hub.elsewhere}/{name}/{path}?signature=once")
        elif kind == "resolve":
            where = f"/api/resolve-cache/models/{name}/{repository.revision}/{path}?etag={file.blob_id}"
            self.say(307, **commit, ETag=f'"{file.blob_id}"', Location=where)
        else:
            self.send_file(path, file, ETag=f'"{file.blob_id}"', **commit)


class _Elsewhere(_Handler):
    def reply(self, path: str, query: dict[str, list[str]]) -> None:
        owner, name, *inside = path.strip("/").split("/")
        repository = self.hub.repositories.get(f"{owner}/{name}")
        file = repository.files.get("/".join(inside)) if repository else None
        if self.token is not None or query.get("signature") != ["once"]:
            self.say(400, b"<Error><Code>InvalidArgument</Code></Error>")
        elif file is None:
            self.say(404)
        else:
            self.send_file("/".join(inside), file, ETag=f'"{file.sha256[:32]}"')
