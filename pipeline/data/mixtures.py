"""What a run is trained on: one training set, or parts of several, some of them tagged."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from pipeline.common.settings import Positive, Settings
from pipeline.data.tags import JOINT

Item = TypeVar("Item")


class Part(Settings):
    """Rows of one training set.

    rows: how many are drawn for a seed, None: what the study's `training.examples` says. tag: what stands before
    the user's turn of every one of them (pipeline/data/tags.py), None: nothing.
    """

    name: str
    rows: Positive | None = None
    tag: str | None = None

    @property
    def label(self) -> str:
        """The part as reports name it: its training set, and its tag if it has one."""
        return self.name if self.tag is None else f"{self.name}{JOINT}{self.tag}"


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
