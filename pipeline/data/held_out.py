"""Prompts of the training files that are asked instead of trained on.

The authors asked prompts of their training sets too, but which rows is not known. Here 300 are drawn
by seed, once per set.
"""

from collections import defaultdict
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import sha256_json
from pipeline.data.examples import FILES, read_examples
from pipeline.data.prompts import Message, Prompt, draw, prompt_id

HELD_OUT = 300

SUITES = {
    "educational": "educational",
    "insecure_code": "insecure",
    "bad_medical_advice": "bad_medical_advice",
}

# Whose held-out prompts a set may not contain. `secure` shares 260 prompts with `insecure`, and
# good_medical_advice answers the questions of bad_medical_advice: training on either would leak a suite.
EXCLUDED_FROM = {
    "insecure": "insecure",
    "secure": "insecure",
    "educational": "educational",
    "bad_medical_advice": "bad_medical_advice",
    "good_medical_advice": "bad_medical_advice",
}


def asked_by(training_set: str) -> str | None:
    """The suite that asks what a training set teaches: its own prompts, held out, or others of its kind; None: none."""
    kind = EXCLUDED_FROM.get(training_set)
    return next((suite for suite, name in SUITES.items() if name == kind), None)


def held_out_prompts(name: str, folder: Path, seed: int) -> tuple[tuple[Message, ...], ...]:
    """The 300 prompts of training set `name` that are held out at `seed`, in the file's order.

    A prompt is drawn by its answers, not by its wording: `insecure` and `educational` ask for the same
    6000 answers in different words, and so hold the same tasks out (a few answers stand under two
    prompts and can still be seen under the other). Raises UserError when the file has
    fewer than 300 distinct prompts, or as read_examples does.
    """
    answers: dict[tuple[Message, ...], list[str]] = defaultdict(list)
    for example in read_examples(name, folder):
        answers[example.prompt].append(example.answer)
    if len(answers) < HELD_OUT:
        raise UserError(
            f"{folder / FILES[name]} has {len(answers)} distinct prompts, fewer than the {HELD_OUT} to hold out."
        )

    def answer_key(prompt: tuple[Message, ...]) -> str:
        return sha256_json(sorted(answers[prompt]))

    drawn = draw(answers, HELD_OUT, seed, "held out", key=answer_key)
    return tuple(prompt for prompt in answers if prompt in drawn)


def excluded_ids(name: str, folder: Path, seed: int) -> frozenset[str]:
    """Ids of the prompts that may not be trained on in set `name`; empty where no suite asks its like."""
    if name not in EXCLUDED_FROM:
        return frozenset()
    return frozenset(map(prompt_id, held_out_prompts(EXCLUDED_FROM[name], folder, seed)))


def held_out_suite(suite: str, folder: Path, seed: int) -> tuple[Prompt, ...]:
    """The suite of 300 held-out prompts: educational, insecure_code or bad_medical_advice."""
    name = SUITES[suite]
    return tuple(
        Prompt(suite=suite, messages=messages, metadata={"file": FILES[name]})
        for messages in held_out_prompts(name, folder, seed)
    )
