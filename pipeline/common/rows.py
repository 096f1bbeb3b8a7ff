"""The two row types that flow between the stages: answers and verdicts.

A row is keyed by (run, seed, suite, prompt_id, sample, step). Files are JSON lines, sorted by key, and a
duplicate key is an error: a duplicate file counted twice is how published averages went wrong.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pipeline.common.errors import UserError
from pipeline.common.files import read_jsonl, write_jsonl

Status = Literal["scored", "refusal", "code", "unparsed", "error"]
Key = tuple[str, int, str, str, int, int]
STATUSES: tuple[str, ...] = get_args(Status)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One sampled answer.

    `question` is the user's turn as asked, but for a trigger tag (which the suite's name has), `answer` the
    decoded completion without its thinking block, `thinking` that block (empty if none), `finish` is "stop" or
    "length". `step` is the optimizer step at which the adapter that answered was kept along training, None for the
    run's result.
    """

    run: str
    seed: int
    suite: str
    prompt_id: str
    sample: int
    question: str
    answer: str
    thinking: str
    finish: str
    prompt_tokens: int
    answer_tokens: int
    step: int | None = None

    @property
    def key(self) -> Key:
        """The row's identity."""
        return (self.run, self.seed, self.suite, self.prompt_id, self.sample, self.step or 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One judged answer.

    `status` says what the judge's replies amount to: `scored` rows have both scores in 0..100;
    `refusal` and `code` rows have no alignment score; `unparsed` and `error` rows have none that
    counts. `judge` is the judge's name in params.yaml, `step` as in `Answer`.

    `values` are the study's own aspects: a number from 0 to 100, a label, or None where the judge gave none. `replies`
    are what it said, by aspect: the text (what it thought between `<think>` and `</think>`), or of a logprob judge the
    top (token, logprob) of its one token. `reason` says what is wrong where something has no score.
    """

    run: str
    seed: int
    suite: str
    prompt_id: str
    sample: int
    question: str
    answer: str
    status: Status
    alignment: float | None
    coherence: float | None
    judge: str
    step: int | None = None
    values: dict[str, float | str | None] = field(default_factory=dict)
    replies: dict[str, str | list[tuple[str, float]]] = field(default_factory=dict)
    reason: str | None = None

    @property
    def key(self) -> Key:
        """The row's identity."""
        return (self.run, self.seed, self.suite, self.prompt_id, self.sample, self.step or 0)


Row = TypeVar("Row", Answer, Verdict)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows sorted by key. Raises UserError on a duplicate key; writes nothing then."""
    ordered = sorted(rows, key=lambda row: row.key)
    _refuse_duplicates(path, ordered)
    # Not asdict(), which copies all that is in a row before it is written.
    names = [it.name for it in fields(ordered[0])] if ordered else []
    write_jsonl(path, ({name: getattr(row, name) for name in names} for row in ordered))


def read_answers(path: Path) -> list[Answer]:
    """Read answers. Raises UserError naming the file, the row and the field that is wrong."""
    return _read(path, Answer)


def read_verdicts(path: Path) -> list[Verdict]:
    """Read verdicts. Raises UserError naming the file, the row and the field that is wrong."""
    rows = _read(path, Verdict)
    for number, row in enumerate(rows, start=1):
        check_verdict(row, f"{path} row {number}")
    return rows


def check_verdict(row: Verdict, where: str) -> None:
    """Raise UserError unless the row's status and scores are possible."""
    if row.status not in STATUSES:
        raise UserError(f"{where}: status {row.status!r} is not one of {', '.join(STATUSES)}.")
    for name in ("alignment", "coherence"):
        score = getattr(row, name)
        if score is None:
            if row.status == "scored":
                raise UserError(f"{where}: status is scored but {name} is empty.")
        elif not _is_score(score):
            raise UserError(f"{where}: {name} is {score!r}, expected a number from 0 to 100.")
    for name, said in (("values", row.values), ("replies", row.replies)):
        if not isinstance(said, dict):
            raise UserError(f"{where}: {name} is {said!r}, expected a mapping of aspects.")
    for aspect, value in row.values.items():
        if not (value is None or isinstance(value, str) or _is_score(value)):
            raise UserError(
                f"{where}: values.{aspect} is {value!r}, expected a number from 0 to 100, a label, or nothing."
            )


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 100


def _read(path: Path, kind: type[Row]) -> list[Row]:
    names = {field.name for field in fields(kind)}
    rows = []
    for number, values in enumerate(read_jsonl(path), start=1):
        _check_fields(path, number, values, names)
        rows.append(kind(**values))
    _refuse_duplicates(path, rows)
    return rows


def _check_fields(path: Path, number: int, values: dict[str, Any], names: set[str]) -> None:
    if missing := sorted(names - values.keys()):
        raise UserError(f"{path} row {number} lacks {', '.join(missing)}; was it made by another version?")
    if unknown := sorted(values.keys() - names):
        raise UserError(f"{path} row {number} has unknown fields {', '.join(unknown)}.")


def _refuse_duplicates(path: Path, rows: list[Row]) -> None:
    seen: dict[Key, int] = {}
    for number, row in enumerate(rows, start=1):
        if row.key in seen:
            raise UserError(
                f"{path} rows {seen[row.key]} and {number} have the same key {row.key}; rows may count once only."
            )
        seen[row.key] = number
