"""Writes a model of the Hugging Face hub into params.yaml: its commit, family, experts, licence and gating, looked up.

    python -m pipeline add-base owner/name
    python -m pipeline add-base path/to/folder

Of the weights nothing is fetched: the stage pin@NAME does that, and checks what is written here against them. Those in
a folder here are hashed, and the hash stands for the commit.
"""

import argparse
import os
import re
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.params.edit import add_entry
from pipeline.params.folders import folder_hashes, revision_of
from pipeline.params.load import NAME


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("repository", help="OWNER/NAME on the hub, or a folder here")
    parser.add_argument("--name", help="what params.yaml calls it (default: from the repository's name)")
    parser.add_argument("--revision", default="main", help="a branch, tag or commit (default: %(default)s)")


def main(args: argparse.Namespace) -> None:
    """Look the model up and write its entry."""
    name = args.name or re.sub(r"[^A-Za-z0-9]+", "_", args.repository.rstrip("/").rpartition("/")[2]).strip("_").lower()
    if not NAME.fullmatch(name):
        raise UserError(f"the name {name!r} will not do; give --name with letters, digits, _ and -.")
    folder = Path(args.repository).expanduser()
    entry = look_into(folder) if folder.is_dir() else look_up(args.repository, args.revision)
    print(f"params.yaml, under bases.hub:\n  {add_entry('bases.hub', name, entry)}\n")
    if entry.get("gated"):
        print(f"It is gated: accept its licence at https://huggingface.co/{args.repository} and set HF_TOKEN.")
    print(f"{'Take it in:' if 'folder' in entry else 'Fetch it:'}       dvc repro pin@{name}")
    print(f"A run with it:  python -m pipeline new run NAME --study STUDY --model {name} --data DATA")


def look_up(repository: str, revision: str) -> dict[str, Any]:
    """The entry of a hub model. Raises UserError when there is none, it cannot be read, or its family is unknown."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        info = HfApi().model_info(repository, revision=revision)
        folder = Path(hf_hub_download(repository, "config.json", revision=info.sha)).parent
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise UserError(
            f"{repository} at {revision} cannot be looked up: {' '.join(str(error).split())[:300]} (check the name; "
            "gated models need HF_TOKEN and an accepted licence)."
        ) from error
    card = info.card_data
    return {
        "repository": repository,
        "revision": info.sha,
        **experts_of(folder, repository),
        "licence": (card.get("license") if card else None) or "unknown",
        "gated": bool(info.gated),
    }


def look_into(folder: Path) -> dict[str, Any]:
    """The entry of a checkpoint here, by its path from the checkout. Raises UserError as `look_up`."""
    hashes = folder_hashes(folder)
    found = experts_of(folder, str(folder))
    return {"folder": os.path.relpath(folder), "revision": revision_of(hashes), **found}


def experts_of(folder: Path, name: str) -> dict[str, Any]:
    """Experts, how many are active, and family of the checkpoint `name` whose config.json is in `folder`."""
    from pipeline.models.checkpoint import read_config
    from pipeline.models.families.registry import anatomy_of

    try:
        config = read_config(folder)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    try:
        anatomy = anatomy_of(config)
    except UserError as error:
        raise UserError(
            f"{name}: {error} Its class needs two things: which fields of the configuration give the experts "
            "(experts_field, width_field), and how its tensors are named (see docs/design.md)."
        ) from None
    return {"experts": anatomy.experts, "active": anatomy.active, "family": anatomy.family.model_type}
