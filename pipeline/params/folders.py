"""A base that is a folder here: known by the bytes of its files, as a hub's is by its commit.

Stage pin@NAME puts its files where a hub's are, into the Hugging Face cache, under the folder's path and the hash of
its contents in place of a commit. Later stages read both kinds alike, and refuse a file that has changed since.
"""

import os
import shutil
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import sha256_json
from pipeline.common.kept_hashes import kept_sha256
from pipeline.models.hub import fetch, is_cached, is_fetched, snapshot
from pipeline.models.shards import weight_files
from pipeline.params.schema import HubBase


def folder_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 by name of the folder's files that are read here; raises UserError when they are no checkpoint."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json: it is no checkpoint as transformers saves them.")
    weight_files(folder)
    return {path.name: kept_sha256(path) for path in _read_here(folder)}


def revision_of(hashes: dict[str, str]) -> str:
    """What stands for a commit: 40 hexadecimal digits that change with every byte and name."""
    return sha256_json(hashes)[:40]


def put_into_cache(folder: Path, revision: str, where: str) -> tuple[Path, dict[str, str]]:
    """The folder's files in the Hugging Face cache, as hard links where they can be, and the SHA-256 of each.

    Raises UserError, `where` params.yaml names the base, when the folder is missing or no longer of that revision.
    """
    if not folder.is_dir():
        raise UserError(f"{where}.folder is {str(folder)!r}, and there is no such folder; bring it, or correct it.")
    place = snapshot(str(folder), revision)
    partial = place.with_name(f".{revision}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in _read_here(folder):
        _link(path.resolve(), partial / path.name)
    hashes = folder_hashes(partial)
    if (found := revision_of(hashes)) != revision:
        shutil.rmtree(partial)
        raise UserError(
            f"{where}.revision is {revision[:12]}..., but the files in {folder} have {found[:12]}...: it is another "
            f"model now. Delete the entry and write it again (`python -m pipeline add-base {folder}`), or bring back "
            "the files."
        )
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)
    return place, hashes


def have(base: HubBase, where: str) -> None:
    """Have a base's files in this machine's Hugging Face cache, from the hub or its folder.

    Raises UserError as `fetch` and `put_into_cache`.
    """
    if base.folder is None:
        fetch(base.repository, base.revision)
    elif not is_cached(base.repository, base.revision):
        put_into_cache(Path(base.folder), base.revision, where)


def _read_here(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and is_fetched(path.name)]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
