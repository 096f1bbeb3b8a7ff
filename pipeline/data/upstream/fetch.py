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
from pipeline.data.upstream.sources import Source, all_sources

FOLDER = Path("data")
PARTIALS = FOLDER / ".partial"


def fetch(pins: Iterable[Source], origin: Origin, folder: Path) -> None:
    """Put every file of `pins` into `folder`, verified, and say what was done with each.

    Goes on past a file that cannot be had. An archive comes last, and is left where it is unless one of `pins` that it
    holds could not be had without it. Raises UserError at the end naming all that cannot be had, with what is wrong or
    where each comes from.
    """
    asked = dict.fromkeys(pins)
    wrong: dict[Source, Exception] = {}
    with _one_at_a_time(folder):
        for pin in (pin for pin in asked if pin.archive is None):
            _try(pin, origin, folder, wrong)
        for archive in _archives(asked):
            held = [pin for pin in asked if archive.holds(pin)]
            if held and not wrong.keys() & held:
                print(f"{'not needed':<10} {folder / archive.path}")
                continue
            _try(archive, origin, folder, wrong)
            for pin in wrong.keys() & held:
                if _is_there(pin, folder):
                    del wrong[pin]
        with suppress(OSError):
            (folder / PARTIALS.name).rmdir()
    if wrong:
        raise UserError("\n".join(_report(len(asked.keys() | wrong), wrong, folder)))


def _archives(asked: Iterable[Source]) -> list[Source]:
    """The archives among `asked`, and those that hold others of them."""
    asked = tuple(asked)
    known = dict.fromkeys((*asked, *all_sources()))
    return [pin for pin in known if pin.archive and (pin in asked or any(map(pin.holds, asked)))]


def _report(total: int, wrong: dict[Source, Exception], folder: Path) -> Iterator[str]:
    yield f"{len(wrong)} of {total} files are not in {folder}/; the others are in place."
    missing = {pin: error for pin, error in wrong.items() if isinstance(error, MissingError)}
    if refused := [error for error in wrong.values() if not isinstance(error, MissingError)]:
        yield from ("Refused:", *(f"  {error}" for error in refused))
    if missing:
        yield from ("Missing:", *(f"  {pin.path} ({why})\n    comes from {pin.url()}" for pin, why in missing.items()))
        yield "Put what is missing into a folder laid out like data/ and run `make data SOURCE=FOLDER`."


def _try(pin: Source, origin: Origin, folder: Path, wrong: dict[Source, Exception]) -> None:
    """Put one file in place and say what was done, or write down in `wrong` why it cannot be had."""
    try:
        print(f"{_place(pin, origin, folder):<10} {folder / pin.path}", flush=True)
    except (UserError, MissingError) as error:
        wrong[pin] = error


def _is_there(pin: Source, folder: Path) -> bool:
    target = folder / pin.path
    return target.is_file() and is_pinned(target.read_bytes(), pin)


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
