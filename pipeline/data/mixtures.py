"""What a run is trained on: one training set, or parts of several, some of them tagged."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import model_validator

from pipeline.common.settings import Commit, Positive, Settings, Sha256
from pipeline.data.tags import JOINT

Item = TypeVar("Item")


class Part(Settings):
    """Rows of one training set.

    name: one that the study's world has. Or your own: file, a path from the checkout or an absolute one, pinned by its
    sha256; or hub, a dataset of the Hugging Face hub, pinned by its revision (a full commit SHA), and its split.
    rows: how many are drawn for a seed, None: what the study's `training.examples` says. tag: what stands before
    the user's turn of every one of them (pipeline/data/tags.py), None: nothing.
    """

    name: str | None = None
    file: str | None = None
    sha256: Sha256 | None = None
    hub: str | None = None
    revision: Commit | None = None
    split: str = "train"
    rows: Positive | None = None
    tag: str | None = None

    @model_validator(mode="after")
    def _check_one(self) -> "Part":
        given = [key for key in ("name", "file", "hub") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"it has {' and '.join(given) or 'none of name, file and hub'}, expected one of the three."
            )
        if self.hub is not None and self.revision is None:
            raise ValueError("hub needs a revision, the dataset's full commit SHA: branches and tags move.")
        for key, of in (("sha256", "file"), ("revision", "hub")):
            if getattr(self, key) is not None and getattr(self, of) is None:
                raise ValueError(f"{key} belongs to {of}, which is not given.")
        return self

    @property
    def own(self) -> bool:
        """True for a file or a dataset of the user's."""
        return self.name is None

    @property
    def label(self) -> str:
        """The part as reports name it: its training set, and its tag if it has one."""
        name = self.name or self.hub or Path(str(self.file)).name
        return name if self.tag is None else f"{name}{JOINT}{self.tag}"


def mix(parts: Sequence[Sequence[Item]], seed: int) -> tuple[Item, ...]:
    """The parts' rows shuffled together by seed, so that no part is learned before another.

    A single part keeps its order: trainers shuffle it themselves.
    """
    if len(parts) == 1:
        return tuple(parts[0])
    places = [(part, row) for part, rows in enumerate(parts) for row in range(len(rows))]

    def rank(place: tuple[int, int]) -> bytes:
        return hashlib.sha256(f"mixture\n{seed}\n{place[0]}\n{place[1]}".encode()).digest()

    return tuple(parts[part][row] for part, row in sorted(places, key=rank))
