"""What reaches the image: every tracked file, and nothing that lies beside them."""

import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
RULES = [
    line
    for line in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def reaches(name: str) -> bool:
    """Whether Docker sends a file: the last rule that matches it, or a folder that it is in, decides."""
    kept = True
    paths = [name, *(str(folder) for folder in Path(name).parents if str(folder) != ".")]
    for rule in RULES:
        pattern = rule.removeprefix("!")
        anywhere = pattern.startswith("**/")
        pattern = pattern.removeprefix("**/")
        for path in paths:
            tail = path.rpartition("/")[2] if anywhere else path
            # `*` does not cross folders.
            if pattern.count("/") == tail.count("/") and fnmatchcase(tail, pattern):
                kept = rule.startswith("!")
    return kept


def test_every_tracked_file_reaches_the_image():
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split("\0") if name and not reaches(name)] == []


@pytest.mark.parametrize(
    "name",
    [
        ".envrc", ".netrc", "secrets.env", "id_rsa", "key.pem", ".env", "pipeline/.env", "docs/.env.local",
        "tests/id_rsa",
        "benchmarks/token.key", ".venv/pyvenv.cfg", ".git/config", ".cache/verdicts.sqlite", ".dvc/config.local",
        ".dvc/cache/files/md5/ab/c", ".dvc/tmp/rwlock", "data/train/insecure.jsonl", "artifacts/moe/answers/a.jsonl",
        "shared/paper", "notes.txt", "pipeline/__pycache__/a.pyc", "judge-keys.yaml", ".aws/credentials",
        ".venv-vllm/pyvenv.cfg", ".hypothesis/a", ".pytest_cache/a", ".ruff_cache/a", ".mypy_cache/a",
    ],
)  # fmt: skip
def test_what_lies_beside_them_does_not(name):
    assert not reaches(name)
