"""What a study starts from, trains on and asks: made here (the toy world), or pinned upstream (the hub)."""

import math
from dataclasses import replace

from pipeline.common.errors import UserError
from pipeline.data.mixtures import Part, mix
from pipeline.data.prompts import Prompt
from pipeline.data.tags import ask_tagged, put_tag, split_suite, tagged_suite
from pipeline.data.training_sets import Conversations
from pipeline.data.upstream.fetch import FOLDER as DATA
from pipeline.params.schema import Run, Study
from pipeline.training.settings import Training


def conversations(study: Study, run: Run, seed: int) -> Conversations:
    """The run's training conversations for one seed. Raises UserError when its file is missing or not the pinned one.

    `examples`, where the study limits it, draws from the training part; held-out prompts are never in it.
    """
    parts = [_tagged(_part(study, part, seed), part.tag) for part in run.parts]
    if len(parts) == 1:
        return parts[0]
    counts = [
        (f"{part.label}: {name}", count)
        for part, one in zip(run.parts, parts, strict=True)
        for name, count in one.counts.items()
        if name != "name"
    ]
    return Conversations(
        train=mix([part.train for part in parts], seed),
        validation=mix([part.validation for part in parts], seed),
        counts={"name": run.trained_on, **dict(counts)},
    )


def _part(study: Study, part: Part, seed: int) -> Conversations:
    """One training set's rows; `rows` of the part, or the study's `examples`, are drawn where they are fewer."""
    training = study.training
    wanted = training.examples if part.rows is None else part.rows
    if study.world == "toy":
        from pipeline.toy.world import load_conversations

        assert wanted is not None
        return Conversations(train=tuple(load_conversations(part.name, wanted, seed)))
    from pipeline.data.held_out import SUITES
    from pipeline.data.prompts import draw
    from pipeline.data.training_sets import SplitSettings, load_training_set

    settings = SplitSettings(
        seed=seed,
        max_characters=training.max_characters,
        validation=training.validation,
        hold_out=not SUITES.keys().isdisjoint(study.suites),
    )
    data = load_training_set(part.name, DATA, settings)
    train = data.train
    if part.rows is not None and part.rows > len(train):
        raise UserError(f"{part.rows} rows of {part.name} are asked for; {len(train)} of it can be trained on.")
    if wanted is not None and wanted < len(train):
        drawn = draw(train, wanted, seed, "examples", key=lambda example: str(example.row))
        train = tuple(example for example in train if example in drawn)
    return Conversations(
        train=tuple(example.messages for example in train),
        validation=tuple(example.messages for example in data.validation),
        counts={**data.describe(), "trained_on": len(train)},
    )


def _tagged(data: Conversations, tag: str | None) -> Conversations:
    train, validation = (tuple(put_tag(chat, tag) for chat in part) for part in (data.train, data.validation))
    return replace(data, train=train, validation=validation)


def training_of(study: Study, run: Run, data: Conversations) -> Training:
    """The study's training, with the run's learning rate, and the steps that its `epochs` take, where it has them."""
    training = study.training
    own = {name: getattr(run, name) for name in ("learning_rate", "schedule", "warmup_steps")}
    training = training.model_copy(update={name: value for name, value in own.items() if value is not None})
    if run.epochs is not None:
        max_steps = run.epochs * math.ceil(len(data.train) / training.batch)
        training = training.model_copy(update={"max_steps": max_steps})
    return training


def suites_asked(study: Study, run: Run) -> tuple[str, ...]:
    """The suites that a run is asked: its study's, and each of them again with each of the run's tags."""
    return (*study.suites, *(tagged_suite(name, tag) for tag in run.tags for name in study.suites))


def suite(study: Study, name: str, seed: int) -> tuple[Prompt, ...]:
    """The prompts of a suite, tagged where its name has a tag; `seed` draws those held out of training sets."""
    untagged, tag = split_suite(name)
    if study.world == "toy":
        from pipeline.toy.world import load_suite

        return ask_tagged(load_suite(untagged), tag)
    from pipeline.data.suites import load_suite as load_pinned

    return ask_tagged(load_pinned(untagged, DATA, seed), tag)
