"""A file takes its name only once its bytes are the pinned ones (pipeline/data/sources.yaml). One that is
there and verifies is left alone; a download that was cut off is continued.

    python -m pipeline data                             everything, from the network
    python -m pipeline data eval train/insecure.jsonl   these files and folders only
    python -m pipeline data --source DIR                from DIR, laid out like data/, never the network
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from pipeline.common.errors import UserError
from pipeline.common.files import write_bytes
from pipeline.data.upstream.archive import extract, is_extracted
from pipeline.data.upstream.origins import MissingError, Origin
from pipeline.data.upstream.pinned import check, git_blob_id, is_pinned
from pipeline.data.upstream.sources import Source

FOLDER = Path("data")
PARTIALS = FOLDER / ".partial"


def fetch(pins: Iterable[Source], origin: Origin, folder: Path) -> None:
    """Put every file of `pins` into `folder`, verified, and say what was done with each.

    Goes on past a file that cannot be had. Raises UserError at the end naming all of those, with what
    is wrong or where each comes from.
    """
    pins = tuple(pins)
    wrong: list[str] = []
    missing: list[str] = []
    with _one_at_a_time(folder):
        for pin in pins:
            try:
                print(f"{_place(pin, origin, folder):<10} {folder / pin.path}")
            except UserError as error:
                wrong.append(f"  {error}")
            except MissingError as error:
                missing.append(f"  {pin.path} ({error})\n    comes from {pin.url()}")
        with suppress(OSError):
            (folder / PARTIALS.name).rmdir()
    if wrong or missing:
        raise UserError("\n".join(_report(len(pins), wrong, missing, folder)))


def _report(total: int, wrong: list[str], missing: list[str], folder: Path) -> Iterator[str]:
    yield f"{len(wrong) + len(missing)} of {total} files are not in {folder}/; the others are in place."
    if wrong:
        yield from ("Refused:", *wrong)
    if missing:
        yield from ("Missing:", *missing)
        yield "Put what is missing into a folder laid out like data/ and run `make data SOURCE=FOLDER`."


def _place(pin: Source, origin: Origin, folder: Path) -> str:
    """Put one file in place; return what was done."""
    target = folder / pin.path
    held = target.read_bytes() if target.is_file() else None
    done = "kept"
    if held is None or not is_pinned(held, pin):
        try:
            content, where = origin.take(pin)
        except MissingError:
            if held is not None:
                check(held, pin, target)
            raise
        if pin.notebook_blob and not is_pinned(content, pin):
            content = judge_prompts(content, pin, where)
        check(content, pin, where)
        write_bytes(target, content)
        done = "fetched" if held is None else "replaced"
    if pin.archive and not is_extracted(pin.archive, folder):
        extract(pin.archive, target, folder)
        done = "decrypted"
    return done


def judge_prompts(notebook: bytes, pin: Source, where: str) -> bytes:
    """The two judge prompts of the authors' notebook as YAML; nothing else of it is kept.

    Raises UserError unless `notebook` is the pinned one.
    """
    from pipeline.data.upstream.notebook import judge_prompts_of

    if (found := git_blob_id(notebook)) != pin.notebook_blob:
        raise UserError(
            f"{where} is not the pinned notebook: its git blob is {found}, expected {pin.notebook_blob} ({pin.origin})."
        )
    # A file in memory: the notebook's other cells hold what must not reach a disk.
    with os.fdopen(os.memfd_create("notebook"), "wb") as stream:
        stream.write(notebook)
        stream.flush()
        prompts = judge_prompts_of(Path(f"/proc/self/fd/{stream.fileno()}"))
    return yaml.safe_dump(prompts, allow_unicode=True).encode("utf-8")


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder itself, which leaves no file among the data: nobody else writes to a partial file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot use {folder}: {error.strerror}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"another process is fetching into {folder}; wait for it or stop it.") from None
    finally:
        os.close(descriptor)
