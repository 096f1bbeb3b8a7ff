"""One commit of a Hugging Face repository: the files of it that are read here, fetched, and checked by their bytes.

Which files these are is said once, in `is_fetched`: fetching, checking, opening and the doctor's sizes agree on it.
Importing this module imports neither torch nor transformers.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.kept_hashes import kept_sha256
from pipeline.models.shards import weight_files

# Repositories hold more: other weight formats, consolidated or quantised copies, documents, folders of their own.
ALLOWED = ["*.json", "*.jinja", "model*.safetensors", "tokenizer*"]
IGNORED = ["*/*"]
# What git holds of a large file (git-lfs, docs/spec.md): its hash and size.
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize %d\n"
# The hub takes larger files as large files alone (10 MB, at the time of writing).
MOST_IN_GIT = 100 * 2**20
GB = 10**9


def is_fetched(path: str) -> bool:
    """Whether a file of a repository, by its path there, is one of those that are read here."""
    from huggingface_hub.utils import filter_repo_objects

    return any(filter_repo_objects([path], allow_patterns=ALLOWED, ignore_patterns=IGNORED))


def snapshot(repository: str, revision: str) -> Path:
    """The Hugging Face cache's folder of one commit, whether it is there or not."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots" / revision


def is_cached(repository: str, revision: str) -> bool:
    """Whether the checkpoint's configuration and every file of its weights are in the Hugging Face cache."""
    folder = snapshot(repository, revision)
    try:
        return (folder / "config.json").exists() and bool(weight_files(folder))
    except UserError:
        return False


def fetch(repository: str, revision: str, only: str | None = None) -> Path:
    """Have the commit's files in the Hugging Face cache, or one of them, and return its folder there.

    Raises UserError: no such repository or commit, no access, no network, a download that broke off, a disk too small.
    """
    import httpx2
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import DryRunError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    what: dict[str, Any] = {"revision": revision, "allow_patterns": [only] if only else ALLOWED}
    what["ignore_patterns"] = IGNORED
    try:
        if not constants.HF_HUB_OFFLINE and not is_cached(repository, revision):
            _check_room(repository, snapshot_download(repository, dry_run=True, **what))
        return Path(snapshot_download(repository, **what))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, httpx2.HTTPError, OSError) as error:
        # Of a dry run, the cause says why.
        cause = error.__cause__ if isinstance(error, DryRunError) and error.__cause__ else error
        raise UserError(_why(repository, revision, cause)) from error


def _check_room(repository: str, files: list[Any]) -> None:
    """Raise UserError unless what is still to be fetched fits on the cache's disk."""
    from huggingface_hub import constants

    needed = sum(file.file_size or 0 for file in files if file.will_download)
    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    if needed > free:
        raise UserError(
            f"{repository}: {needed / GB:.1f} GB are to be fetched, and the disk of {cache} has {free / GB:.1f} GB "
            "free; free some space, or set HF_HOME to a larger disk."
        )


def _why(repository: str, revision: str, error: BaseException) -> str:
    """What a failed fetch means, and what to do."""
    from huggingface_hub import constants, errors, get_token

    commit = f"{repository} at {revision[:12]}"
    if isinstance(error, errors.GatedRepoError):
        access = "the Hugging Face token has no access" if get_token() else "there is no Hugging Face token"
        return (
            f"{commit} is gated and {access} (HTTP {error.response.status_code}); accept its licence at "
            f"https://huggingface.co/{repository}, then export HF_TOKEN=..."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{repository} has no commit {revision} (any more): its owner may have rewritten it; correct `revision` "
            "under bases.hub in params.yaml, or bring a Hugging Face cache that holds the commit (HF_HOME)."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{constants.ENDPOINT} has no repository {repository}, or it is private and HF_TOKEN gives no access (HTTP "
            f"{error.response.status_code}); correct `repository` under bases.hub in params.yaml."
        )
    if isinstance(error, errors.HFValidationError):
        return f"{repository!r} is no repository of the hub: `repository` under bases.hub is OWNER/NAME."
    said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{commit} is not in the Hugging Face cache, and {constants.ENDPOINT} cannot be reached ({said})."
    return f"{commit} was not fetched to its end ({said}); run this again: what has come is kept."


def checked_hashes(repository: str, revision: str) -> dict[str, str]:
    """SHA-256 of the bytes of every file of the commit that is read here.

    Each file is compared with what the hub listed for the commit when it was fetched. Raises UserError where a file
    differs or is missing, and where there is no list: a folder under a commit's name is not that commit.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    folder, commit = snapshot(repository, revision), f"{repository} at {revision[:12]}"
    try:
        listed = [file for file in get_cached_repo_tree(repository, revision=revision) if is_fetched(file.path)]
    except CachedRepoTreeNotFoundError as error:
        raise UserError(
            f"{folder} cannot be told from another model: the Hugging Face cache has no list of {commit}'s files. "
            "Pin it once where the hub can be reached (without HF_HUB_OFFLINE)."
        ) from error
    hashes = {}
    for file in listed:
        path = folder / file.path
        if not path.exists():
            raise UserError(f"{path} is missing, which {commit} holds; fetch it again.")
        if (size := path.stat().st_size) != file.size:
            raise UserError(
                f"{path} has {size:,} bytes, {commit} lists {file.size:,}: it is cut short or changed. Delete "
                f"{path.resolve()} and pin the base again."
            )
        hashes[file.path] = kept_sha256(path)
        if not _is_git_object(path, size, hashes[file.path], file.blob_id):
            raise UserError(
                f"{path} is not the file of {commit}: its bytes (SHA-256 {hashes[file.path]}) do not give the git "
                f"object {file.blob_id} that the hub lists. Delete {path.resolve()} and pin the base again."
            )
    return hashes


def _is_git_object(path: Path, size: int, sha256: str, blob_id: str) -> bool:
    """Whether git calls this file `blob_id` (the SHA-1 of size and bytes): itself, or the pointer of a large file."""
    if _blob_id(LFS_POINTER % (sha256.encode(), size)) == blob_id:
        return True
    return size <= MOST_IN_GIT and _blob_id(path.read_bytes()) == blob_id


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


def refuse_changes(folder: Path, hashes: dict[str, str], commit: str) -> None:
    """Raise UserError unless the files in `folder` that are read here are those of `hashes`, byte for byte."""
    there = {path.name for path in folder.glob("*") if is_fetched(path.name)}
    for name in sorted(hashes.keys() | there):
        if name not in there:
            raise UserError(f"{folder / name} is missing, with which {commit} was pinned; pin the base again.")
        if name not in hashes:
            raise UserError(f"{folder / name} is no file of {commit} as it was pinned; remove it.")
        if (found := kept_sha256(folder / name)) != hashes[name]:
            raise UserError(
                f"{folder / name} changed since {commit} was pinned: its SHA-256 was {hashes[name]}, it is {found}; "
                f"delete {(folder / name).resolve()} and pin the base again."
            )
