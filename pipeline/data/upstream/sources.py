"""The pins: every file of data/ with its repository, commit, path, hashes, rows and licence.

The values are in sources.yaml beside this file.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from pipeline.common.errors import UserError

GITHUB_RAW = "https://raw.githubusercontent.com"


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An encrypted archive's contents: the folder they go to under data/, the published password,
    and `tree_sha256`, easy-dataset-share's hash of the files once its canaries are removed.
    """

    folder: str
    password: str
    tree_sha256: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file of data/ and where it comes from.

    `path` is relative to data/. `git_blob` (SHA-1 of git's blob object), `sha256` and `bytes` describe
    that file. `rows` counts CSV records, JSON lines, entries of a YAML list, or answers by tag; `columns` are the CSV
    header or the keys every row has. `notebook_blob` is set where the upstream file is a notebook that only a few
    strings are taken from: it then identifies the notebook. `also`: other places of the same bytes, as
    owner/repo@commit:path.
    """

    path: str
    repo: str
    upstream: str
    licence: str
    commit: str | None = None
    branch: str | None = None
    git_blob: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    rows: int | None = None
    columns: tuple[str, ...] = ()
    notebook_blob: str | None = None
    also: tuple[str, ...] = ()
    archive: Archive | None = None
    note: str = ""

    @property
    def revision(self) -> str:
        """The full commit, or the branch where no commit is known."""
        return self.commit or self.branch or ""

    @property
    def origin(self) -> str:
        """The file upstream, as people write it: owner/repo@revision:path."""
        return f"{self.repo}@{self.revision}:{self.upstream}"

    def url(self, base: str = GITHUB_RAW) -> str:
        """The address to download from; `base` may be a mirror with GitHub's raw layout."""
        return f"{base.rstrip('/')}/{self.repo}/{self.revision}/{self.upstream}"

    def holds(self, other: "Source") -> bool:
        """Whether this is an archive that another file of data/ comes out of, too."""
        return self.archive is not None and other.path.startswith(f"{self.archive.folder}/")

    @property
    def elsewhere(self) -> tuple["Source", ...]:
        """The same file at the other places that hold it."""
        found = []
        for place in self.also:
            origin, _, upstream = place.partition(":")
            repo, _, commit = origin.partition("@")
            found.append(replace(self, repo=repo, commit=commit, branch=None, upstream=upstream, also=()))
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Known content that is not what it is taken for."""

    sha256: str
    git_blob: str
    bytes: int
    rows: int
    seen_at: str
    reason: str


@functools.cache
def _pins() -> tuple[tuple[Source, ...], tuple[Refused, ...]]:
    pins = yaml.safe_load(Path(__file__).with_name("sources.yaml").read_text(encoding="utf-8"))
    return tuple(map(_source, pins["sources"])), tuple(Refused(**entry) for entry in pins["refused"])


def _source(entry: dict) -> Source:
    values = dict(entry, columns=tuple(entry.get("columns", ())), also=tuple(entry.get("also", ())))
    if "archive" in values:
        values["archive"] = Archive(**values["archive"])
    return Source(**values)


def all_sources() -> tuple[Source, ...]:
    """Every pinned source, in the order of sources.yaml."""
    return _pins()[0]


def all_refused() -> tuple[Refused, ...]:
    """Every content that is refused by its hash."""
    return _pins()[1]


def source(path: str) -> Source:
    """The source of data/`path`. Raises UserError when there is none."""
    for candidate in all_sources():
        if candidate.path == path:
            return candidate
    raise UserError(f"no file {path!r} is pinned; the files are {', '.join(s.path for s in all_sources())}.")
