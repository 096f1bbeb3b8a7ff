"""dvc.lock: what DVC recorded of each stage, a block of text a stage.

DVC parses and writes all of it whenever a stage ends, in a YAML library that keeps comments: 3 of the 5 seconds of a
core that DVC takes for a stage, for a file that DVC alone writes. Here one stage's block takes another's place.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common.files import write_text

LOCK = Path("dvc.lock")
_HEAD = "schema: '2.0'\nstages:\n"
_NONE = "schema: '2.0'\nstages: {}\n"
_BLOCK = re.compile(r"^  (\S+):\n(?:(?:    .*)?\n)*", re.MULTILINE)


def records(stages: list[str]) -> dict[str, Any]:
    """What dvc.lock says of these stages."""
    from dvc.utils.serialize import load_yaml

    known = load_yaml(str(LOCK))["stages"] if stages else {}
    return {name: known[name] for name in stages}


def keep_in_lock(entries: Mapping[str, Any]) -> None:
    """Put DVC's records of stages that were done on other machines into dvc.lock."""
    if entries:
        put(LOCK, entries)
        sort_lock()


def write_lock(entries: Mapping[str, Any]) -> None:
    """A dvc.lock of these records alone: the commit's own is of another time, and perhaps of another machine."""
    write_text(LOCK, _HEAD + "".join(_blocks(entries).values()) if entries else _NONE)


def sort_lock() -> None:
    """Put dvc.lock's stages in alphabetical order: DVC appends them as they finish, which varies."""
    if LOCK.exists() and (blocks := read_blocks(LOCK)):
        write_text(LOCK, _HEAD + "".join(block for _, block in sorted(blocks.items())))


def put(path: Path, entries: Mapping[str, Any]) -> bool:
    """Put records into a dvc.lock, each in the place of the stage's last one or at the end; did that change it?

    The bytes are those that DVC writes, and the file appears whole. One that somebody wrote in is read and written as
    DVC does it.
    """
    from dvc.utils.serialize import modify_yaml

    before = read_blocks(path) if path.exists() else {}
    if before is None:
        with modify_yaml(str(path)) as lock:
            lock.setdefault("schema", "2.0")
            lock.setdefault("stages", {}).update(entries)
        return True
    blocks = before | _blocks(entries)
    if blocks == before:
        return False
    write_text(path, _HEAD + "".join(blocks.values()))
    return True


def read_blocks(path: Path) -> dict[str, str] | None:
    """The stages of a dvc.lock, each with its lines; None where it is not as DVC writes it."""
    text = path.read_text(encoding="utf-8")
    if text in ("", _NONE):
        return {}
    blocks = {found[1]: found[0] for found in _BLOCK.finditer(text)}
    return blocks if text == _HEAD + "".join(blocks.values()) else None


def _blocks(entries: Mapping[str, Any]) -> dict[str, str]:
    from dvc.utils.serialize import dumps_yaml

    return {name: dumps_yaml({"stages": {name: entry}}).removeprefix("stages:\n") for name, entry in entries.items()}
