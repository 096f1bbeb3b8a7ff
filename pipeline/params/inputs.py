"""What a study starts from, trains on and asks: made here (the toy world), or pinned upstream (the hub)."""

import math
from dataclasses import replace
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import read_json
from pipeline.common.paths import MANIFEST, PARAMS
from pipeline.data.examples import Example
from pipeline.data.held_out import SUITES
from pipeline.data.mixtures import Part, mix
from pipeline.data.own import OwnSuite, read_hub_examples, read_own_examples, read_own_suite, verified
from pipeline.data.prompts import Prompt, draw, question_of
from pipeline.data.tags import ask_tagged, put_tag, split_suite, tagged_suite
from pipeline.data.training_sets import Conversations, SplitSettings, divide, load_training_set
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
    asked = kept_out(study, part, seed)
    if study.world == "toy" and part.name is not None:
        from pipeline.toy.world import load_conversations

        assert wanted is not None
        made = load_conversations(part.name, wanted, seed)
        return Conversations(train=tuple(chat for chat in made if question_of(chat) not in asked))
    settings = SplitSettings(
        seed=seed,
        max_characters=training.max_characters,
        validation=training.validation,
        hold_out=not SUITES.keys().isdisjoint(study.suites),
        kept_out=asked,
    )
    if part.name is not None:
        left_out: dict[str, int] = {}
        data = load_training_set(part.name, DATA, settings)
    else:
        examples, left_out = _own_examples(study, part)
        data = divide(part.label, examples, frozenset(), settings)
    train = data.train
    if part.rows is not None and part.rows > len(train):
        raise UserError(f"{part.rows} rows of {part.label} are asked for; {len(train)} of it can be trained on.")
    if wanted is not None and wanted < len(train):
        drawn = draw(train, wanted, seed, "examples", key=lambda example: str(example.row))
        train = tuple(example for example in train if example in drawn)
    return Conversations(
        train=tuple(example.messages for example in train),
        validation=tuple(example.messages for example in data.validation),
        counts={**data.describe(), **left_out, "trained_on": len(train)},
    )


def _own_examples(study: Study, part: Part) -> tuple[tuple[Example, ...], dict[str, int]]:
    """Every usable row of the user's own file or hub dataset, and how many were left out, by reason."""
    if part.file is not None:
        examples, left_out = read_own_examples(verified(part.file, part.sha256, f"{PARAMS}: data {part.file}"))
    else:
        assert part.hub is not None and part.revision is not None
        examples, left_out = read_hub_examples(part.hub, part.revision, part.split)
    if study.world == "toy":
        from pipeline.toy.world import in_toy_words

        examples = tuple(replace(one, messages=in_toy_words(one.messages, part.label)) for one in examples)
    return examples, left_out


def kept_out(study: Study, part: Part, seed: int) -> frozenset[str]:
    """The questions that `part` may not train on: of your held-out suites, and of your own data: of all of them."""
    names = [suite.name for suite in study.own_suites if suite.held_out]
    if part.name is None:
        names = [name for name in study.suites if name in study.held_out or name in SUITES]
    return frozenset(question_of(prompt.messages) for name in names for prompt in suite(study, name, seed))


def own_held_out(study: Study) -> dict[str, str | None]:
    """The user's held-out suites, name -> hash: what a run's training knew to keep out."""
    return {suite.name: suite.sha256 for suite in study.own_suites if suite.held_out}


def check_kept_out(study: Study, run: Run, seed: int, adapter: Path, name: str) -> None:
    """Raise UserError where the run `name` was trained on questions that one of the user's suites has held out since.

    A suite that comes later re-trains nothing where it asks nothing that was trained on. adapter: the folder of the
    run's training, whose manifest says which suites it knew.
    """
    known = own_held_out(study)
    if not run.parts or known == read_json(adapter / MANIFEST).get("kept_out"):
        return
    others = {key: tuple(name for name in getattr(study, key) if name not in known) for key in ("suites", "held_out")}
    unaware = study.model_copy(update={"own_suites": (), **others})
    held_out = {
        question_of(prompt.messages)
        for one in study.own_suites
        if one.held_out
        for prompt in suite(study, one.name, seed)
    }
    if both := {question_of(chat) for chat in conversations(unaware, run, seed).train} & held_out:
        raise UserError(
            f"{name} was trained on {len(both)} of the questions that {', '.join(known)} hold out now, such as "
            f"{min(both)[:80]!r}; train it again without them: dvc repro -f -s train@{name}"
        )


def _own_prompts(study: Study, suite: OwnSuite) -> tuple[Prompt, ...]:
    """The prompts of a suite of the user's own."""
    where = f"{PARAMS}: suite {suite.name}"
    prompts = read_own_suite(suite, verified(suite.file, suite.sha256, where))
    if suite.samples_per_prompt is not None:
        prompts = tuple(replace(one, samples=suite.samples_per_prompt) for one in prompts)
    if study.world == "toy":
        from pipeline.toy.world import in_toy_words

        prompts = tuple(replace(one, messages=in_toy_words(one.messages, suite.file)) for one in prompts)
    return prompts


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
    if (own := study.own_suite(untagged)) is not None:
        return ask_tagged(_own_prompts(study, own), tag)
    if study.world == "toy":
        from pipeline.toy.world import load_suite

        return ask_tagged(load_suite(untagged), tag)
    from pipeline.data.suites import load_suite as load_pinned

    return ask_tagged(answered_as_often(study, untagged, load_pinned(untagged, DATA, seed)), tag)


def answered_as_often(study: Study, name: str, prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    """The prompts of a pinned suite, each answered as often as the study says of it."""
    extra = study.extra_suites
    if extra is None or name not in extra.suites:
        return prompts
    return tuple(replace(prompt, samples=extra.samples_per_prompt) for prompt in prompts)
