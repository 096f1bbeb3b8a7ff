"""A hub base is one commit of one repository: its files are fetched into the Hugging Face cache here.

What the stage leaves is a record, not the weights: the repository, the full commit SHA, and a hash of every
file (the SHA-256 of large ones, the git blob id of small ones). Later stages read the files from the cache. Of a
base behind an API there is nothing to fetch: the record is its dated name and where it is asked.
"""

import argparse
from pathlib import Path

from pipeline.api.config import OPENAI
from pipeline.common.errors import UserError
from pipeline.common.files import write_json
from pipeline.common.paths import ARTIFACTS, PARAMS, PIN
from pipeline.models.checkpoint import checkpoint_folder
from pipeline.models.families.registry import anatomy_of
from pipeline.params.load import load_params
from pipeline.params.schema import HubBase


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this stage's arguments."""
    parser.add_argument("--base", required=True, help="a name under bases.hub or bases.api in params.yaml")


def main(args: argparse.Namespace) -> None:
    """Fetch the base's files and record what they are."""
    params = load_params()
    behind = params.bases.api.get(args.base)
    if behind is not None:
        write_json(
            ARTIFACTS / "bases" / args.base / PIN, {"model": behind.model, "endpoint": behind.base_url or OPENAI}
        )
        return
    base = params.hub_base(args.base)
    folder = checkpoint_folder(base.repository, base.revision)
    check(folder, base, f"{PARAMS}: bases.hub.{args.base}")
    record = {"repository": base.repository, "revision": base.revision, "files": file_hashes(folder)}
    write_json(ARTIFACTS / "bases" / args.base / PIN, record)


def check(folder: Path, base: HubBase, where: str) -> None:
    """Raise UserError unless the model in `folder` has the experts that params.yaml says."""
    from transformers import AutoConfig

    anatomy = anatomy_of(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    if (anatomy.experts, anatomy.active) != (base.experts, base.active):
        raise UserError(
            f"{where} says {base.experts} experts of which {base.active} are active, but {base.repository} "
            f"has {anatomy.experts} experts of which {anatomy.active} are."
        )


def file_hashes(folder: Path) -> dict[str, str]:
    """The hash of every file of a snapshot, by which the Hugging Face cache names what its links point to."""
    return {str(path.relative_to(folder)): path.resolve().name for path in sorted(folder.rglob("*")) if path.is_file()}
