"""The smoke study of `make check`: the toy study cut down to one base, two runs and one seed, in a checkout of its own.

The stages, their code and DVC are those of every study; what is cut is how much of it there is. It shows the effect
and measures nothing: one seed has no interval.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.errors import UserError
from pipeline.common.git import git
from pipeline.common.paths import PARAMS

BASE, TUNED = "toy_e8_base", "toy_e8_bad_medical"


def make_smoke_checkout(folder: Path) -> None:
    """Copy this checkout's files into `folder`, a repository of its own, with the smoke study as its study `toy`."""
    names = git("ls-files", "-co", "--exclude-standard", "-z")
    if names.returncode:
        raise UserError("this is no git repository, and the check makes a copy of what git knows; clone it instead.")
    shutil.rmtree(folder, ignore_errors=True)
    for name in names.stdout.split("\0"):
        if name and Path(name).is_file() and not name.startswith(("paper_figures/", "tests/", "dvc.lock")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, folder / name)
    path = folder / PARAMS
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(smoke(params), sort_keys=False), encoding="utf-8")
    identity = ["-c", "user.name=emoe", "-c", "user.email=emoe@localhost"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "smoke study"]):
        subprocess.run(["git", *identity, *command], cwd=folder, check=True)


def smoke(params: dict[str, Any]) -> dict[str, Any]:
    """params.yaml's content with the smoke study alone."""
    study = params["studies"]["toy"] | {"seeds": [1], "expectations": [[TUNED, BASE]], "contrasts": {}, "probing": None}
    study["title"] = "A smoke study of the toy world: one seed"
    base = params["bases"]["toy"]["e8"] | {"more_seeds": []}
    bases: dict[str, Any] = {kind: {} for kind in params["bases"]} | {"toy": {"e8": base}}
    return {
        "studies": {"toy": study},
        "bases": bases,
        "runs": {name: params["runs"][name] for name in (BASE, TUNED)},
    }
