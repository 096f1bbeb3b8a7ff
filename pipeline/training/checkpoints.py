"""A run's checkpoints: kept in the cache, under the hash of all that determines them, until its result is written."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from pipeline.common.files import sha256_json
from pipeline.common.fingerprints import code_hashes, folder_hashes, library_versions
from pipeline.common.paths import CACHE, STEPS
from pipeline.models.adapters import CONFIG, WEIGHTS
from pipeline.training.task import FineTuning

# The mark of a checkpoint that was written to its end.
WHOLE = "whole"


def checkpoint_folder_of(task: FineTuning) -> Path:
    """The folder of a training's checkpoints: another one for another base, start, data, setting, code or library."""
    data, start = task.data, task.start
    chats = [[[turn.as_dict() for turn in chat] for chat in part] for part in (data.train, data.validation)]
    settings = [repr(value) for value in (task.lora, task.settings, task.trajectory, task.seed)]
    how = [code_hashes("train.py", "training", "models"), library_versions(), settings]
    identity = [dict(task.base.hashes), task.base.active, folder_hashes(start) if start else None, chats, how]
    return CACHE / "checkpoints" / sha256_json(identity)


def last_whole_checkpoint(checkpoints: Path) -> str | None:
    """The newest checkpoint that was written whole; what a killed process left half-written is written again."""
    steps = [int(mark.parent.name.rpartition("-")[2]) for mark in checkpoints.glob(f"checkpoint-*/{WHOLE}")]
    return str(checkpoints / f"checkpoint-{max(steps)}") if steps else None


def drop_checkpoints(checkpoints: Path, keep: set[str]) -> None:
    """Remove the checkpoints not named in `keep`, each one's mark first: half of one must not be resumed from."""
    for folder in checkpoints.glob("checkpoint-*"):
        if folder.name not in keep:
            (folder / WHOLE).unlink(missing_ok=True)
            shutil.rmtree(folder)


def remove_checkpoints(checkpoints: Path) -> None:
    """Remove the whole folder, and what a kill in here left of it; renamed first, since half is not to resume from."""
    done = checkpoints.with_name(f"{checkpoints.name}.done")
    if done.exists():
        shutil.rmtree(done)
    if checkpoints.exists():
        shutil.rmtree(checkpoints.rename(done))


def copy_kept(checkpoints: Path, steps: Iterable[int], folder: Path) -> None:
    """Copy the adapters kept at these steps into a result's folder, file by file: a killed save leaves others."""
    for step in steps:
        target = folder / STEPS / str(step)
        target.mkdir(parents=True)
        for name in (WEIGHTS, CONFIG):
            shutil.copyfile(checkpoints / STEPS / str(step) / name, target / name)
