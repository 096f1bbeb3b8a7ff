"""A checkout whose stages DVC believes done: outputs are written, not computed, so what DVC looks at can be tested."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support.checkout import REPOSITORY, environment
from tests.support.quick_yaml import safe_dump, safe_load


def dvc(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["dvc", *arguments], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def changed(folder: Path) -> dict[str, str]:
    """Stage -> what `dvc status` says of it."""
    parts = re.split(r"^(\w+@[\w-]+):$", dvc(folder, "status"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def toy_study(runs: Iterable[str], bases: Iterable[str]) -> dict[str, Any]:
    """The repository's params.yaml with nothing but these runs and bases of the toy study."""
    content = safe_load((REPOSITORY / "params.yaml").read_text())
    content["runs"] = {name: content["runs"][name] for name in runs}
    content["studies"] = {"toy": content["studies"]["toy"] | {"probing": None}}
    content["bases"] = {"toy": {name: content["bases"]["toy"][name] for name in bases}, "hub": {}, "api": {}}
    return content


def write_params(folder: Path, content: dict[str, Any]) -> None:
    (folder / "params.yaml").write_text(safe_dump(content, sort_keys=False))


def write_output(folder: Path, path: str, text: str = "made") -> None:
    """Write a file below artifacts/."""
    file = folder / "artifacts" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def recorded(folder: Path, content: dict[str, Any]) -> Path:
    """Make `folder` a checkout with the code and the toy study in `content`, every stage of it recorded as done."""
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy2(REPOSITORY / name, folder)
    shutil.copytree(REPOSITORY / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "published", folder / "published")
    write_params(folder, content)
    for base in content["bases"]["toy"]:
        write_output(folder, f"bases/{base}/model", base)
    for run in content["runs"]:
        for path in (f"adapters/{run}/adapter", f"answers/{run}.jsonl", f"verdicts/{run}/toy_rule.jsonl"):
            write_output(folder, f"toy/{path}", run)
    write_output(folder, "toy/probes/manifest.json", "{}")
    write_output(folder, "toy/metrics.json", "{}")
    (folder / "paper_figures" / "toy").mkdir(parents=True)
    (folder / "paper_figures" / "toy" / "README.md").touch()
    dvc(folder, "init", "--no-scm")
    dvc(folder, "commit", "--force")
    return folder
