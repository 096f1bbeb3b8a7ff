"""What DVC finds to do, and its own files that a kill cut short."""

import contextlib
import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.common.errors import UserError, with_causes
from pipeline.common.paths import CACHE
from pipeline.running.dvc import LOCK, repository

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


def is_changed(stage: str) -> bool:
    """Whether DVC finds anything to do for a stage and all that it depends on.

    Its files that a kill cut short are set aside: then there is.
    Raises UserError where DVC cannot tell, as other files of its own are broken.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    try:
        with repository() as repo:
            return bool(out_of_date(repo, stage))
    except LockError:
        return True  # another DVC is at work, or was killed: `dvc repro` waits for it
    except DvcException as error:
        if set_aside_unreadable_files():
            return True
        raise UserError(f"DVC cannot go on: {with_causes(error)}") from error


def out_of_date(repo: Any, stage: str) -> dict[str, Any]:
    """DVC's status of a stage and all that it depends on in `repo` (a dvc.repo.Repo): name -> what changed.

    DVC parses params.yaml again for every stage that reads it, and looks through all of it for every key that a stage
    names, which takes longer than everything else here. Nothing changes the file meanwhile: it is parsed once, and a
    key leads to its value.
    """
    import dvc.dependency.param as params
    from dvc.utils.serialize import LOADERS, load_yaml

    def value_at(content: Any, key: str, separator: str) -> Any:
        """As dpath.get, for a key without wildcards. Raises KeyError."""
        for part in key.split(separator):
            if not isinstance(content, dict):
                raise KeyError(key)
            content = content[part]
        return content

    LOADERS[".yaml"], looked_up = functools.cache(load_yaml), params.dpath
    params.dpath = SimpleNamespace(get=value_at)
    try:
        found: dict[str, Any] = repo.status(targets=[stage], with_deps=True)
        return found
    finally:
        del LOADERS[".yaml"]
        params.dpath = looked_up
