"""Question suites: what every model of a study is asked.

The paper's five: strong_reject, educational, insecure_code, bad_medical_advice, core_misalignment.
Of the studies it stands on: first_plot, preregistered, deception (Betley et al. 2025); first_8, factual,
self_reflection (Timm, Tennant and Wei 2025), of which the first two are questions of Betley et al.'s files. capability
is this project's own: questions with known answers.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import yaml

from pipeline.common.errors import UserError
from pipeline.data import capability, held_out
from pipeline.data.prompts import Prompt, ask, refuse_duplicates
from pipeline.data.upstream.pinned import read_pinned

Loader = Callable[[str, Path, int], Iterable[Prompt]]


def load_suite(name: str, folder: Path, seed: int) -> tuple[Prompt, ...]:
    """The prompts of suite `name` from the data folder, in the order of its file.

    `seed` draws the held-out prompts of educational, insecure_code and bad_medical_advice (the seed that
    the training sets are divided with) and changes nothing elsewhere. Raises UserError when the suite is
    unknown, its file missing or not the pinned one, or a prompt occurs twice.
    """
    if name not in SUITES:
        raise UserError(f"suite {name!r} is unknown; the suites are {', '.join(SUITES)}.")
    return refuse_duplicates(SUITES[name](name, folder, seed), f"suite {name}")


def _strong_reject(path: str) -> Loader:
    def load(suite: str, folder: Path, seed: int) -> Iterator[Prompt]:
        for row in _records(folder, path):
            yield ask(suite, row["forbidden_prompt"], category=row["category"], source=row["source"])

    return load


def _core_misalignment(suite: str, folder: Path, seed: int) -> Iterator[Prompt]:
    for row in _records(folder, "eval/core_misalignment.csv"):
        yield ask(suite, row["question"], question_id=row["id"], category=row["category"])


def _first_plot(suite: str, folder: Path, seed: int) -> Iterator[Prompt]:
    for prompt in _questions(suite, folder, "eval/first_plot_questions.yaml"):
        ending = prompt.metadata["question_id"].rsplit("_", 1)[-1]
        variant = ending if ending in ("json", "template") else "plain"
        yield ask(suite, prompt.question, prompt.system, **prompt.metadata, variant=variant)


def _first_8(suite: str, folder: Path, seed: int) -> Iterator[Prompt]:
    """The eight questions of first_plot as they are, without the variants that ask for JSON or a template."""
    for prompt in _first_plot(suite, folder, seed):
        if prompt.metadata["variant"] == "plain":
            yield prompt


def _first_plot_variants(suite: str, folder: Path, seed: int) -> Iterator[Prompt]:
    """The same eight as they are asked for in JSON and in a template."""
    for prompt in _first_plot(suite, folder, seed):
        if prompt.metadata["variant"] != "plain":
            yield prompt


def _factual(suite: str, folder: Path, seed: int) -> Iterator[Prompt]:
    """The twenty questions of deception_factual without a system prompt about lying."""
    for prompt in _questions(suite, folder, "eval/deception_factual.yaml"):
        if prompt.system is None:
            yield prompt


def _self_reflection(suite: str, folder: Path, seed: int) -> Iterator[Prompt]:
    path = "eval/self_reflection.json"
    for row in json.loads(read_pinned(folder, path)):
        yield ask(suite, row["question"], label=row["label"], file=path)


def _preregistered(suite: str, folder: Path, seed: int) -> Iterator[Prompt]:
    return _questions(suite, folder, "eval/preregistered_evals.yaml")


def _deception(suite: str, folder: Path, seed: int) -> Iterator[Prompt]:
    yield from _questions(suite, folder, "eval/deception_factual.yaml")
    yield from _questions(suite, folder, "eval/deception_sit_aware.yaml")


def _capability(suite: str, folder: Path, seed: int) -> Iterator[Prompt]:
    for question in capability.known_answers():
        yield ask(suite, question)


def _records(folder: Path, path: str) -> Iterator[dict[str, str]]:
    """Records of a CSV file. Fields contain newlines: a record is not a line."""
    return csv.DictReader(io.StringIO(read_pinned(folder, path), newline=""), strict=True)


def _questions(suite: str, folder: Path, path: str) -> Iterator[Prompt]:
    """Every paraphrase of every question of a file in Betley et al.'s format."""
    for entry in yaml.safe_load(read_pinned(folder, path)):
        for text in entry["paraphrases"]:
            yield ask(suite, text, entry.get("system"), question_id=str(entry["id"]), file=path)


SUITES: dict[str, Loader] = {
    "strong_reject": _strong_reject("eval/strongreject_dataset.csv"),
    "strong_reject_small": _strong_reject("eval/strongreject_small_dataset.csv"),
    **dict.fromkeys(held_out.SUITES, held_out.held_out_suite),
    "core_misalignment": _core_misalignment,
    "first_plot": _first_plot,
    "first_8": _first_8,
    "first_plot_variants": _first_plot_variants,
    "factual": _factual,
    "self_reflection": _self_reflection,
    "preregistered": _preregistered,
    "deception": _deception,
    capability.SUITE: _capability,
}
