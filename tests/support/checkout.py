"""A checkout of this repository with a cut-down toy study, and commands run in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pipeline.common.files import sha256_file
from tests.support.quick_yaml import safe_dump, safe_load

REPOSITORY = Path(__file__).parents[2]
TUNED, BASE = "toy_e8_bad_medical", "toy_e8_base"


def checkout(folder: Path) -> Path:
    """A fresh repository with the tracked files and a study of one base, two runs and two seeds."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=REPOSITORY, capture_output=True, check=True
    )
    for name in names.stdout.decode().split("\0"):
        if name and (REPOSITORY / name).is_file() and not name.startswith(("paper_figures/", "dvc.lock")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    params = safe_load((folder / "params.yaml").read_text())
    study = params["studies"]["toy"]
    study |= {"seeds": [1, 2], "expectations": [[TUNED, BASE]], "contrasts": {"bad_advice": {"pairs": [[TUNED, BASE]]}}}
    study["probing"] = None
    params["studies"] = {"toy": study}
    study["judges"]["toy_second"] = study["judges"]["toy_rule"] | {"max_retries": 1}
    study["pretraining"] |= {"steps": 60, "warmup_steps": 10}
    study["training"] |= {"examples": 32, "max_steps": 4, "checkpoint_every": 2}
    study["sampling"] |= {"samples_per_prompt": 1, "batch": 64}
    params["bases"]["toy"] = {"e8": params["bases"]["toy"]["e8"] | {"more_seeds": []}}
    params["runs"] = {name: params["runs"][name] for name in (BASE, TUNED)}
    params["runs"][TUNED] |= {
        "lora": {"rank": 1, "experts": [0], "layers": [1], "projections": ["down"], "attention": False},
        "trajectory": {"every": 1, "samples_per_prompt": 1},
    }
    (folder / "params.yaml").write_text(safe_dump(params, sort_keys=False))
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "study"]):
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *identity, *command], cwd=folder, check=True)
    return folder


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    names = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org"}
    names |= {"GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.org"}
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # `make test` sets it
    return inherited | names | {"PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONDONTWRITEBYTECODE": ""}


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def reproduce(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return run(folder, sys.executable, "-m", "pipeline", "reproduce", "--study", "toy", *more)


def hashes(folder: Path) -> dict[str, str]:
    """Every output of the study, name -> SHA-256; provenance.json and the page have times and are none."""
    paths = [*(folder / "artifacts").rglob("*"), *(folder / "paper_figures" / "toy").rglob("*"), folder / "dvc.lock"]
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in sorted(paths)
        if path.is_file() and path.name not in ("provenance.json", "report.html")
    }
