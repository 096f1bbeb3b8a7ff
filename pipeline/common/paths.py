"""Where things lie in a checkout; every path is relative to its root."""

from pathlib import Path

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
