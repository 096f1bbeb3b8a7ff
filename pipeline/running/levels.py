"""A study's levels: what lies between its stages, to be fetched instead of computed, and to be published.

adapters    what training made (with the toy's bases); sampling comes next
answers     what the models said; judging comes next, and no GPU is needed
verdicts    what the judges said, of runs and of probes; tables and figures come next
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.paths import ARTIFACTS
from pipeline.params.schema import Params
from pipeline.running.dvc import repository, told

REMOTE = "EMOE_REMOTE"
LEVELS = ("adapters", "answers", "verdicts")
_MADE_BY = {"adapters": "train", "answers": "sample", "verdicts": "judge"}


def stages_of_level(params: Params, study: str, level: str) -> list[str]:
    """The stages whose outputs are this level, in the order of params.yaml."""
    stages = [f"{_MADE_BY[level]}@{run}" for run in params.runs_of(study)]
    if level == "verdicts":
        stages.append(f"probe@{study}")
    if level == "adapters":
        # The toy's bases were made here; others are fetched from their hub by the stage `pin`.
        stages = [name for base in params.bases_of(study) if (name := params.stage_of_base(base))] + stages
    return stages


def stages_after(params: Params, study: str, level: str) -> list[str]:
    """The stages that are left when this level is there. Probes need the models: past those they are fetched."""
    kinds = ("train", "sample", "judge")
    left = kinds[kinds.index(_MADE_BY[level]) + 1 :]
    stages = [f"{kind}@{run}" for run in params.runs_of(study) for kind in left]
    return [*stages, *([f"probe@{study}"] if level == "adapters" else []), f"aggregate@{study}"]


def fetch_level(params: Params, study: str, level: str) -> None:
    """Bring a level here, and adapters and probes, which tables are made of too: from EMOE_REMOTE or DVC's own remote.

    EMOE_REMOTE is a DVC remote's address (a folder, https://, s3://, ...) or a folder laid out like artifacts/.
    Raises UserError naming what the remote does not have.
    """
    address = os.environ.get(REMOTE, "")
    levels = ["adapters"] if level == "adapters" else ["adapters", level, "probes"]
    archive = Path(address) / study
    if address and archive.is_dir():
        for each in levels:
            if not (archive / each).is_dir():
                raise UserError(f"{REMOTE} is {address}, and there is no folder {study}/{each} in it.")
            shutil.copytree(archive / each, ARTIFACTS / study / each, dirs_exist_ok=True)
        return
    stages = stages_of_level(params, study, "adapters")
    if level != "adapters":
        stages = [f"train@{run}" for run in params.runs_of(study)] + stages_of_level(params, study, level)
        stages += [] if level == "verdicts" else [f"probe@{study}"]
    with repository(remote_config(address)) as repo:
        pull(repo, stages)


def remote_config(address: str) -> dict[str, Any] | None:
    """DVC's configuration with this address as its only default remote; None: as the checkout has it."""
    if not address:
        return None
    url = address if "://" in address else str(Path(address).resolve())
    return {"core": {"remote": "emoe"}, "remote": {"emoe": {"url": url}}}


def pull(repo: Any, stages: list[str]) -> None:
    """Fetch these stages' outputs. Raises UserError naming those that cannot be had."""
    cause = ""
    try:
        with told("DVC cannot fetch"):
            repo.pull(targets=stages, force=True)
    except UserError as error:
        cause = str(error)
    if missing := sorted(str(path) for path in outputs(repo, stages) if not path.exists()):
        shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        remote = repo.config["core"].get("remote") or "no remote (set EMOE_REMOTE, or `dvc remote add --default`)"
        url = repo.config["remote"].get(remote, {}).get("url", "")
        raise UserError(f"not to be had from {url or remote}: {shown}. {cause}".strip())
    if cause:
        raise UserError(cause)


def outputs(repo: Any, stages: Iterable[str]) -> list[Path]:
    """The stages' outputs, as paths in this checkout."""
    root = Path(repo.root_dir)
    return [Path(out.fs_path).relative_to(root) for name in stages for out in repo.stage.collect(name)[0].outs]
