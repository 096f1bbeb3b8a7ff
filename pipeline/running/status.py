"""What DVC finds to do, and its own files that a kill cut short."""

import contextlib
import json
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError, with_causes
from pipeline.common.paths import CACHE
from pipeline.running.dvc import repository
from pipeline.running.lock import LOCK
from pipeline.running.shown import shown_only

READERS = Path(".dvc/tmp/rwlock")


def set_aside_unreadable_files() -> bool:
    """Move dvc.lock, and DVC's list of who reads what, to the cache folder where they cannot be read; were there any?

    DVC does not write them in one piece, so a kill may leave a part. DVC's run cache knows what dvc.lock said.
    """
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException

    found = False
    # Where there is no repository, or another DVC holds it, nothing is found.
    with contextlib.suppress(DvcException), repository() as repo, repo.lock:
        readers = {
            LOCK: lambda: Lockfile(repo, str(LOCK.resolve())).load(),
            READERS: lambda: json.loads(READERS.read_bytes()),
        }
        for path, read in readers.items():
            try:
                if path.exists():
                    read()
            except (DvcException, ValueError) as error:
                aside = path.replace(CACHE / f"{path.name}.cut_short")
                print(f"{path} cannot be read ({with_causes(error)}). It is now {aside}, and made again.", flush=True)
                found = True
    return found


def is_changed(stages: list[str]) -> bool:
    """Whether DVC finds anything to do for a study's stages, each named after those that it needs, the last after all.

    DVC's files that a kill cut short are set aside: then there is.
    Raises UserError where DVC cannot tell, as other files of its own are broken.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    try:
        with repository() as repo:
            return bool(out_of_date(repo, stages))
    except LockError:
        return True  # another DVC is at work, or was killed: `dvc repro` waits for it
    except DvcException as error:
        if set_aside_unreadable_files():
            return True
        raise UserError(f"DVC cannot go on: {with_causes(error)}") from error


def out_of_date(repo: Any, stages: list[str]) -> dict[str, Any]:
    """DVC's status in `repo` (a dvc.repo.Repo) of these stages, the last of which needs all others: name -> changes."""
    with shown_only(stages):
        found: dict[str, Any] = repo.status(targets=stages[-1:], with_deps=True)
        return found
