"""Is a file the pinned one, byte for byte, and if not, what is wrong with it?

The answer is the hash alone. Where it says no, the content is looked at to tell a person what has
happened to the file: cut short, line endings converted, columns renamed, rows added.
"""

import csv
import hashlib
import io
import json
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.errors import UserError
from pipeline.data.upstream.sources import Source, all_refused, source

TOOL_FILES = ("robots.txt", "tos.txt")
CANARY_FILES = "dataset_entry_*.jsonl"


class NotPinnedError(UserError):
    """data/`path`, one of the pinned files, is missing or is another file."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


def git_blob_id(content: bytes) -> str:
    """Git's name for a file's content: SHA-1 of `blob <length>\\0` and the content, in hexadecimal."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def is_pinned(content: bytes, pin: Source) -> bool:
    """Whether `content` is the pinned file: every hash that is known has to agree."""
    return (pin.bytes is None or len(content) == pin.bytes) and all(
        known is None or found(content) == known
        for known, found in ((pin.sha256, _sha256), (pin.git_blob, git_blob_id))
    )


def check(content: bytes, pin: Source, where: Path | str) -> None:
    """Raise NotPinnedError naming `where`, what was found and what was expected unless `content` is pinned."""
    if is_pinned(content, pin):
        return
    if pin.sha256 is not None:
        expected, found = f"sha256 {pin.sha256[:12]}", f"sha256 {_sha256(content)[:12]}"
    else:
        expected, found = f"git blob {pin.git_blob}", f"git blob {git_blob_id(content)}"
    size = f", {pin.bytes} bytes" if pin.bytes is not None else ""
    raise NotPinnedError(
        f"{where} is not the pinned file: {diagnose(content, pin)}. "
        f"Expected {expected}{size} ({pin.origin}); found {found}, {len(content)} bytes. "
        f"Remove it and run `make data` again, or take it from {pin.url()}.",
        pin.path,
    )


def read_pinned(folder: Path, path: str) -> str:
    """The text of data/`path`, verified. Raises NotPinnedError when it is missing or not the pinned file."""
    pin, file = source(path), folder / path
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise NotPinnedError(f"{file} is missing: run `make data`. It comes from {pin.url()}.", path) from error
    check(content, pin, file)
    return content.decode("utf-8")


def diagnose(content: bytes, pin: Source) -> str:
    """What is wrong with `content`, in words, given that it is not the pinned file."""
    for refused in all_refused():
        if _sha256(content) == refused.sha256:
            return f"it is {refused.reason}"
    if not content:
        return "it is empty"
    if pin.archive is not None:
        return _size_differs(content, pin) or "some of its bytes were changed"
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"it is not UTF-8 (byte {error.start})"
    if "\r\n" in text and is_pinned(content.replace(b"\r\n", b"\n"), pin):
        return "its line endings were converted to CRLF; fetch it without newline conversion"
    return (
        _rows_differ(text, pin)
        or _size_differs(content, pin)
        or "its shape is right, but some of its bytes were changed"
    )


def tree_sha256(folder: Path) -> str:
    """Hash of a folder's files: SHA-256 of sorted lines `relative path:sha256`.

    The definition is easy-dataset-share's `Dataset hash`; like it, it leaves out the tool's own files.
    """
    files = {
        file.relative_to(folder).as_posix(): file
        for file in folder.rglob("*")
        if file.is_file() and file.name not in TOOL_FILES and not file.match(CANARY_FILES)
    }
    lines = (f"{name}:{_sha256(files[name].read_bytes())}\n" for name in sorted(files))
    return _sha256("".join(lines).encode("utf-8"))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _size_differs(content: bytes, pin: Source) -> str | None:
    if pin.bytes is None or len(content) == pin.bytes:
        return None
    if len(content) < pin.bytes:
        return f"{pin.bytes - len(content)} of its {pin.bytes} bytes are missing (cut short?)"
    return f"it has {len(content) - pin.bytes} bytes too many"


def _rows_differ(text: str, pin: Source) -> str | None:
    kind = Path(pin.path).suffix
    if kind == ".csv":
        return _csv_differs(text, pin)
    if kind == ".jsonl":
        return _jsonl_differs(text, pin)
    return _yaml_differs(text, pin)


def _csv_differs(text: str, pin: Source) -> str | None:
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except csv.Error as error:
        return f"it is not CSV ({error})"
    if differs := _columns_differ(header, pin):
        return differs
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            return f"record {number} has {len(row)} fields, expected {len(header)} (cut short?)"
    return _count_differs([tuple(row) for row in rows], pin)


def _jsonl_differs(text: str, pin: Source) -> str | None:
    lines = text.removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            return f"line {number} is not JSON ({error.msg}; cut short?)"
        if not isinstance(row, dict):
            return f"line {number} is not an object"
        if differs := _columns_differ(row, pin):
            return f"on line {number} {differs}"
    return _count_differs(lines, pin)


def _yaml_differs(text: str, pin: Source) -> str | None:
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return f"it is not YAML ({str(error).splitlines()[0]}; cut short?)"
    if isinstance(entries, dict):
        return _columns_differ(entries, pin)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return "it does not hold a list of questions"
    for number, entry in enumerate(entries, start=1):
        if missing := [name for name in pin.columns if name not in entry]:
            return f"question {number} lacks {', '.join(missing)} (renamed?)"
    return _count_differs([str(entry.get("id", entry)) for entry in entries], pin)


def _columns_differ(found: Iterable[str], pin: Source) -> str | None:
    missing = [name for name in pin.columns if name not in found]
    unknown = [name for name in found if name not in pin.columns]
    if not missing and not unknown:
        return None
    parts = [f"column {name!r} is missing" for name in missing]
    parts += [f"column {name!r} is unknown" for name in unknown]
    return ", ".join(parts)


def _count_differs(rows: list[Any], pin: Source) -> str | None:
    if pin.rows is None or len(rows) == pin.rows:
        return None
    if len(rows) < pin.rows:
        return f"it has {len(rows)} rows, expected {pin.rows} (cut short?)"
    repeats = _repeats(rows)
    example = f"; {len(repeats)} repeat an earlier one, the last is {repeats[-1]}" if repeats else ""
    return f"it has {len(rows)} rows, expected {pin.rows}{example}"


def _repeats(rows: list[Hashable]) -> list[str]:
    first: dict[Hashable, int] = {}
    found = []
    for number, row in enumerate(rows, start=1):
        if first.setdefault(row, number) != number:
            found.append(f"row {number} (equal to row {first[row]})")
    return found
