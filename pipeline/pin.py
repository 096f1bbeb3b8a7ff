"""A hub base is one commit of one repository: its files are fetched into the Hugging Face cache here.

The files that are read later are fetched, held against the hub's list by their bytes, and against the configuration
by their headers. What the stage leaves is a record, not the weights: the repository, the full commit SHA, and the
SHA-256 of every file. Later stages read the files from the cache and refuse any that is no longer what was pinned.
A base in a folder here is put into the cache, and its contents' hash stands for the commit.
Of a base behind an API there is nothing to fetch: the record is its dated name and where it is asked.
"""

import argparse
from pathlib import Path

from pipeline.api.config import OPENAI
from pipeline.common.errors import UserError
from pipeline.common.files import write_json
from pipeline.common.paths import ARTIFACTS, PARAMS, PIN
from pipeline.models.families.registry import anatomy_of
from pipeline.models.hub import checked_hashes, fetch
from pipeline.params.folders import put_into_cache
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
    from pipeline.models.complete import check_complete

    base = params.hub_base(args.base)
    where = f"{PARAMS}: bases.hub.{args.base}"
    if base.folder is not None:
        folder, files = put_into_cache(Path(base.folder), base.revision, where)
        check_experts(folder, base, where)
    else:
        # The configuration first: what it shows to be wrong is said before the weights are fetched.
        check_experts(fetch(base.repository, base.revision, only="config.json"), base, where)
        folder = fetch(base.repository, base.revision)
        files = checked_hashes(base.repository, base.revision)
    check_complete(folder)
    record = {"repository": base.repository, "revision": base.revision, "files": files}
    write_json(ARTIFACTS / "bases" / args.base / PIN, record)


def check_experts(folder: Path, base: HubBase, where: str) -> None:
    """Raise UserError unless the model in `folder` has the experts, and about the parameters, that params.yaml says."""
    from pipeline.models.checkpoint import read_config
    from pipeline.models.sizes import active_values, base_values

    config = read_config(folder)
    anatomy = anatomy_of(config)
    if (anatomy.experts, anatomy.active) != (base.experts, base.active):
        raise UserError(
            f"{where} says {base.experts} experts of which {base.active} are active, but {base.repository} "
            f"has {anatomy.experts} experts of which {anatomy.active} are."
        )
    counted = {"billions": sum(base_values(config).values()) / 1e9, "active_billions": active_values(config) / 1e9}
    for key, found in counted.items():
        said = getattr(base, key)
        # Norms and biases are in no count, and a model card rounds.
        if said is not None and abs(said - found) > 0.01 * found + 0.05:
            raise UserError(f"{where}.{key} is {said}, but by its configuration {base.repository} has {found:.2f}.")
