"""Writes a model of the Hugging Face hub into params.yaml: its commit, family, experts, licence and gating, looked up.

    python -m pipeline add-base owner/name

Of the weights nothing is fetched: the stage pin@NAME does that, and checks what is written here against them.
"""

import argparse
import re
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.params.edit import add_entry
from pipeline.params.load import NAME


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("repository", help="OWNER/NAME on the hub")
    parser.add_argument("--name", help="what params.yaml calls it (default: from the repository's name)")
    parser.add_argument("--revision", default="main", help="a branch, tag or commit (default: %(default)s)")


def main(args: argparse.Namespace) -> None:
    """Look the model up and write its entry."""
    name = args.name or re.sub(r"[^A-Za-z0-9]+", "_", args.repository.rpartition("/")[2]).strip("_").lower()
    if not NAME.fullmatch(name):
        raise UserError(f"the name {name!r} will not do; give --name with letters, digits, _ and -.")
    entry = look_up(args.repository, args.revision)
    print(f"params.yaml, under bases.hub:\n  {add_entry('bases.hub', name, entry)}\n")
    if entry["gated"]:
        print(f"It is gated: accept its licence at https://huggingface.co/{args.repository} and set HF_TOKEN.")
    print(f"Fetch it:       dvc repro pin@{name}")
    print(f"A run with it:  python -m pipeline new run NAME --study STUDY --model {name} --data DATA")


def look_up(repository: str, revision: str) -> dict[str, Any]:
    """The entry of a hub model. Raises UserError when there is none, it cannot be read, or its family is unknown."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from transformers import AutoConfig

    from pipeline.models.families.registry import anatomy_of

    if Path(repository).is_dir():
        raise UserError(f"{repository} is a folder here; give the OWNER/NAME of a repository on the hub.")
    try:
        info = HfApi().model_info(repository, revision=revision)
        config = Path(hf_hub_download(repository, "config.json", revision=info.sha)).parent
        anatomy = anatomy_of(AutoConfig.from_pretrained(config, trust_remote_code=False))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise UserError(
            f"{repository} at {revision} cannot be looked up: {' '.join(str(error).split())[:300]} (check the name; "
            "gated models need HF_TOKEN and an accepted licence)."
        ) from error
    except UserError as error:
        raise UserError(
            f"{repository}: {error} Its class needs two things: which fields of the configuration give the experts "
            "(experts_field, width_field), and how its tensors are named (see docs/design.md)."
        ) from None
    card = info.card_data
    return {
        "repository": repository,
        "revision": info.sha,
        "experts": anatomy.experts,
        "active": anatomy.active,
        "family": anatomy.family.model_type,
        "licence": (card.get("license") if card else None) or "unknown",
        "gated": bool(info.gated),
    }
