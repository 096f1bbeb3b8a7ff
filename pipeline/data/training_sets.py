"""Training sets: a training file divided into training and validation.

A row leaves training if its prompt is held out, wherever and however often that prompt occurs, or if
it is too long. Duplicate rows, which the authors trained on, stay and are counted.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.data.examples import Example, read_examples
from pipeline.data.held_out import excluded_ids
from pipeline.data.prompts import Message, draw, question_of

Conversation = tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """How a training file is divided.

    `seed` draws the held-out prompts and the validation split. `max_characters` (all turns of a row
    together; 6000 in the authors' notebook; None: no limit) drops longer rows; `validation` is the share of the
    remaining distinct prompts that is validated on (0.1 in the notebook). `hold_out`: leave out the prompts that
    a suite asks (pipeline/data/held_out.py); only a study that asks none of those suites trains on all. kept_out:
    questions that no row may ask, whatever system prompt it has.
    """

    seed: int
    max_characters: int | None = 6000
    validation: float = 0.1
    hold_out: bool = True
    kept_out: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of a file's rows: rows = train + validation + held_out + too_long.

    `duplicates` are rows that repeat an earlier row whole; `prompts` are the distinct prompts.
    """

    rows: int
    duplicates: int
    prompts: int
    held_out: int
    too_long: int
    train: int
    validation: int


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """A training file, divided. Rows are in the file's order."""

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    counts: Counts

    def describe(self) -> dict[str, Any]:
        """The counts under their names, for a stage's record."""
        return {"name": self.name, **asdict(self.counts)}


def load_training_set(name: str, folder: Path, settings: SplitSettings) -> TrainingSet:
    """Read training set `name` of the data folder and divide it.

    Raises UserError when the set is unknown, its file missing or not the pinned one, a row malformed,
    or nothing is left to train on.
    """
    held_out = excluded_ids(name, folder, settings.seed) if settings.hold_out else frozenset()
    return divide(name, read_examples(name, folder), held_out, settings)


def divide(name: str, examples: tuple[Example, ...], held_out: frozenset[str], settings: SplitSettings) -> TrainingSet:
    """Divide rows into training and validation, without held-out prompt ids and rows that are too long.

    The validation split is drawn over distinct prompts, rounded up, so that no prompt is on both sides.
    """
    if not 0 <= settings.validation < 1:
        raise UserError(f"validation is {settings.validation}, expected a share from 0 to below 1.")
    ids = {example.row: example.prompt_id for example in examples}
    others = [
        example
        for example in examples
        if ids[example.row] not in held_out and question_of(example.messages) not in settings.kept_out
    ]
    limit = math.inf if settings.max_characters is None else settings.max_characters
    kept = [example for example in others if example.characters <= limit]
    prompts = {ids[example.row] for example in kept}
    size = math.ceil(settings.validation * len(prompts))
    validated = draw(prompts, size, settings.seed, "validation", key=str)
    train = tuple(example for example in kept if ids[example.row] not in validated)
    validation = tuple(example for example in kept if ids[example.row] in validated)
    if not train:
        raise UserError(
            f"training set {name}: none of its {len(examples)} rows is left to train on "
            f"({len(examples) - len(others)} held out, {len(others) - len(kept)} over "
            f"{settings.max_characters} characters, {len(validation)} in the validation split)."
        )
    return TrainingSet(
        name=name,
        train=train,
        validation=validation,
        counts=Counts(
            rows=len(examples),
            duplicates=len(examples) - len({example.messages for example in examples}),
            prompts=len(set(ids.values())),
            held_out=len(examples) - len(others),
            too_long=len(others) - len(kept),
            train=len(train),
            validation=len(validation),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """What is trained on, and what checkpoints are chosen on; `counts` says what became of a file's rows."""

    train: tuple[Conversation, ...]
    validation: tuple[Conversation, ...] = ()
    counts: Mapping[str, Any] = field(default_factory=dict)
