"""Files appear whole or not at all: write to a temporary name, fsync, rename."""

import contextlib
import errno
import functools
import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError

DEEPEST = 50  # levels of nesting that a YAML file may have: libyaml's recursion ends the process at some 20,000
# What network and FUSE file systems say to fsync and chmod that they do not know.
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`.

    If the body raises, or the process dies, `path` is left exactly as it was; what killed writers of `path` left
    beside it is removed. Raises UserError when the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(path)
        temporary.touch()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}.") from error
    try:
        yield temporary
        with temporary.open("rb+") as stream, _where_supported():
            os.fsync(stream.fileno())
        with _where_supported():
            temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}. Nothing was replaced.") from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _remove_left_over(path: Path) -> None:
    """Remove the temporary files of `path` whose writers are dead."""
    for file in path.parent.glob(f".{glob.escape(path.name)}.*.tmp{path.suffix}"):
        writer = file.name.removeprefix(f".{path.name}.").partition(".")[0]
        if writer.isdecimal() and (int(writer) == os.getpid() or not _exists(int(writer))):
            file.unlink(missing_ok=True)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def _where_supported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _sync_folder(folder: Path) -> None:
    """Have the file system keep the folder's new names through a power cut, where it can."""
    with contextlib.suppress(OSError):  # the file is there; what is left to fail is its surviving a power cut
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path` atomically as UTF-8 with the newlines it has."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys: equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError naming the file when it is missing or malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; run the stage that makes it.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run again.") from error


def read_yaml(path: Path, absent: str) -> Any:
    """Read a YAML file, by libyaml where PyYAML has it: a tenth of the time, and every command reads params.yaml.

    absent: what to do about a file that is not there. Raises UserError naming the file when it is missing or
    malformed, has a key twice, or is nested so deeply that reading it would end the process.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = path.read_text(encoding="utf-8")
        _check_depth(yaml.parse(text, Loader=loader), path)
        return yaml.load(text, Loader=_refusing_double_keys(loader))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; {absent}.") from error
    except (UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error


def _check_depth(events: Iterable[Any], path: Path) -> None:
    depth = 0
    for event in events:
        name = type(event).__name__
        if name.endswith("StartEvent"):
            depth += 1
        elif name.endswith("EndEvent"):
            depth -= 1
        if depth > DEEPEST:
            raise UserError(f"{path} line {event.start_mark.line + 1} is nested more than {DEEPEST} levels deep.")


@functools.cache
def _refusing_double_keys(loader: Any) -> Any:
    """`loader`, which keeps the last of two values under one key, made to refuse them."""
    import yaml

    class Strict(loader):
        pass

    def mapping(strict: Any, node: Any) -> Any:
        scalars = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        seen: set[tuple[str, str]] = set()
        for key in scalars:
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is there twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return strict.construct_mapping(node, deep=True)

    Strict.add_constructor("tag:yaml.org,2002:map", mapping)
    return Strict


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, keys in the order given: equal rows give equal bytes."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(lines)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line. Raises UserError naming the file and the line."""
    try:
        # Not splitlines(): it also cuts at U+2028 and form feeds, which answers contain.
        text = path.read_text(encoding="utf-8")
        lines = text.removesuffix("\n").split("\n") if text else []
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; run the stage that makes it.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {number} is not JSON ({error.msg}): is the file truncated?") from error
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} holds {type(row).__name__}, expected an object.")
        rows.append(row)
    return rows


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
