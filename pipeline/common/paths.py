"""Where things lie in a checkout; every path is relative to its root."""

from pathlib import Path

from pipeline.common.errors import UserError

PIN = "base.json"
STEPS = "steps"
MANIFEST = "manifest.json"

PARAMS = Path("params.yaml")
ARTIFACTS = Path("artifacts")
FIGURES = Path("paper_figures")
CACHE = Path(".cache")


def kept_along(folder: Path) -> list[tuple[int, Path]]:
    """The adapters that a seed's training kept on its way (Run.trajectory): step and folder, in order."""
    return sorted((int(path.name), path) for path in (folder / STEPS).glob("*"))


def refuse_a_linked_folder() -> None:
    """Raise UserError where a folder of outputs is a link: DVC refuses what is behind it, once a stage has made it."""
    for folder in (ARTIFACTS, FIGURES):
        if folder.is_symlink():
            raise UserError(
                f"{folder} is a link to {folder.resolve()}, and DVC follows none; put DVC's cache on that disk, and "
                f"only its files are linked: rm {folder}; mkdir {folder}; dvc cache dir --local {folder.resolve()}; "
                "dvc config --local cache.type symlink. (Or mount it: mount --bind.)"
            )
