"""The model that a run starts from: a toy base of one seed, or a pinned revision in the Hugging Face cache."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import read_json
from pipeline.common.fingerprints import folder_hashes
from pipeline.common.paths import ARTIFACTS, PIN
from pipeline.models.hub import refuse_changes, snapshot


@dataclass(frozen=True, kw_only=True)
class Base:
    """A whole model, to start from or to ask: where it lies, what it is called, and hashes of all that it is made of.

    `revision` is the commit of a hub model, None for a toy one. active: the experts that it routes a token to, None: as
    its configuration says; whatever loads the base reads it, and no weight depends on it.
    """

    path: Path
    name: str
    revision: str | None
    hashes: Mapping[str, str]
    active: int | None = None


def open_base(name: str, seed: int, active: int | None = None) -> Base:
    """The base `name` as its stage (pretrain@ or pin@) left it, to be routed to `active` experts; a toy base has one a
    seed.

    Raises UserError when that stage has not run, or the pinned files are no longer in the cache, byte for byte.
    """
    folder = ARTIFACTS / "bases" / name
    if not (folder / PIN).exists():
        return open_checkpoint(folder / f"seed-{seed}", active)
    pin = read_json(folder / PIN)
    commit = f"{pin['repository']} at {pin['revision'][:12]}"
    found = snapshot(pin["repository"], pin["revision"])
    if not found.is_dir():
        raise UserError(
            f"{commit} is not in the Hugging Face cache (HF_HOME); fetch it again: dvc repro -f -s pin@{name}"
        )
    refuse_changes(found, pin["files"], commit)
    return Base(path=found, name=pin["repository"], revision=pin["revision"], hashes=pin["files"], active=active)


def open_checkpoint(folder: Path, active: int | None = None) -> Base:
    """A model that lies in a folder of this project: made, or trained whole, by one of its stages.

    Raises UserError when the folder holds no weights.
    """
    return Base(path=folder, name=str(folder), revision=None, hashes=folder_hashes(folder), active=active)
