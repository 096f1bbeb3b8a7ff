"""What determines a cached value: files, code and library versions, as hashes.

A cache outlives stages, so its keys must hold everything that DVC would re-run a stage for.
"""

from importlib.metadata import version
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import sha256_file

LIBRARIES = ("torch", "transformers", "peft", "trl", "tokenizers", "bitsandbytes")
ROOT = Path(__file__).parents[1]
IGNORED = ROOT.parent / ".dvcignore"


def folder_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a model's or an adapter's folder: weights, configuration, tokenizer.

    Raises UserError when the folder holds no weights.
    """
    files = sorted(path for path in folder.glob("*") if path.is_file() and not path.name.startswith("."))
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"{folder} holds no weights (*.safetensors); run the stage that makes it.")
    return {path.name: sha256_file(path) for path in files}


def code_hashes(*names: str) -> dict[str, str]:
    """SHA-256 of the named files, and of all Python files in and below the named folders, of this package.

    What .dvcignore lists determines nothing and is left out, as DVC leaves it out of a stage's dependencies.
    """
    ignored = {line.removeprefix(f"/{ROOT.name}/") for line in IGNORED.read_text(encoding="utf-8").splitlines()}
    paths = [
        path for name in names for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
    ]
    found = {str(path.relative_to(ROOT)): path for path in sorted(paths)}
    return {name: sha256_file(path) for name, path in found.items() if name not in ignored}


def library_versions() -> dict[str, str]:
    """The versions of the libraries that compute."""
    return {name: version(name) for name in LIBRARIES}
