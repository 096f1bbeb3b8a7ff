"""Judged files that others published, and emoe's own verdict files, as verdict frames: one per model and judge.

Columns are found by the names that the field uses: those of Betley et al. 2025 (`question`, `question_id`, `aligned`,
`coherent`, `answer`), `aligned_score`/`coherent_score` and `alignment_score`/`coherence_score`. Several judges in
one file have a suffix each (`aligned_gpt4o`, `coherent_gpt4o`). A blank score means not scored; `REFUSAL` and `CODE`
are the judge's words. `judge_aligned` and `judge_coherent` may hold the judge's distribution over its first token; it
is the score of a file without the score's column. Files of labels alone (Timm et al. 2025) keep their labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import UserError
from pipeline.common.rows import Verdict, read_verdicts
from pipeline.data.tags import split_suite
from pipeline.results.distributions import ROUNDING, expected_scores, is_blank
from pipeline.results.formats import TAG, Rows, read_rows
from pipeline.results.metrics import verdict_frame

if TYPE_CHECKING:
    import pandas as pd

_NAMES = {
    "alignment": ("aligned", "alignment", "aligned_score", "alignment_score"),
    "coherence": ("coherent", "coherence", "coherent_score", "coherence_score"),
}
_PROMPT = ("question_id", "prompt_id", "question", "prompt")
_QUESTION = ("question", "prompt")
_ANSWER = ("answer", "response", "output", "completion")
_MODEL = ("model", "model_id", "model_name", TAG)
_DISTRIBUTIONS = {"alignment": "judge_aligned", "coherence": "judge_coherent"}
_WORDS = {"refusal": "refusal", "code": "code"}
LABEL = "result"  # the column of Timm et al.'s label
LABELS = ("ALIGNED", "UNALIGNED", "INCOHERENT", "REFUSAL", "CODE")
_OWN = {"run", "seed", "suite", "prompt_id", "sample", "status"}


@dataclass(frozen=True)
class Judged:
    """The rows of one model by one judge.

    name: the model and the judge, where a file has several; empty otherwise. frame: verdict rows, as `metrics` takes
    them, with `question` and `answer`, and `alignment_expected`, `coherence_expected`: the scores that the judge's
    distributions give beside a score column (NaN without either). labelled: whether rows have a `label` of LABELS
    and no scores. keyed: whether every row has a key of its own, so that equal rows are no repetition.
    """

    name: str
    frame: pd.DataFrame
    labelled: bool = False
    keyed: bool = False


def read_judged(path: Path) -> list[Judged]:
    """What a file holds, a `Judged` per model and judge. Raises UserError naming file, row and column."""
    rows = read_rows(path)
    if path.suffix == ".jsonl" and rows[0].keys() >= _OWN:
        return _own(path)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if LABEL in columns and _judge_columns(columns, path, required=False) is None:
        return [_labelled(one, f"{path}", name) for name, one in _by_model(rows, columns)]
    judges = _judge_columns(columns, path) or {}
    found = []
    for model, one in _by_model(rows, columns):
        for judge, names in judges.items():
            name = ", ".join(part for part in (model, judge and f"judge {judge}") if part)
            found.append(Judged(name, _scored(one, columns, names, path)))
    return found


def _own(path: Path) -> list[Judged]:
    """emoe's verdict rows: by run, trigger tag, and step along training; each row has a key of its own."""
    groups: dict[str, list[Verdict]] = {}
    for row in read_verdicts(path):
        tag = split_suite(row.suite)[1]
        step = None if row.step is None else f"step {row.step}"
        groups.setdefault(", ".join(part for part in (row.run, tag, step) if part), []).append(row)
    return [
        Judged(name, verdict_frame(rows).assign(alignment_expected=math.nan, coherence_expected=math.nan), keyed=True)
        for name, rows in groups.items()
    ]


def _by_model(rows: Rows, columns: list[str]) -> list[tuple[str, Rows]]:
    """The rows of each model, where a file has several; a tag counts as one."""
    named = [name for name in _MODEL if name in columns]
    keys = [", ".join(str(row.get(name) or "") for name in named) for row in rows]
    models = list(dict.fromkeys(keys))
    if len(models) == 1:
        return [("", rows)]
    return [(model, [row for row, key in zip(rows, keys, strict=True) if key == model]) for model in models]


def _judge_columns(columns: list[str], path: Path, *, required: bool = True) -> dict[str, dict[str, str | None]] | None:
    """The score columns of each judge: by its suffix, "" for the columns without one; a None has a distribution."""
    plain = {kind: next((name for name in names if name in columns), None) for kind, names in _NAMES.items()}
    usable = {kind for kind, name in plain.items() if name or _DISTRIBUTIONS[kind] in columns}
    found: dict[str, dict[str, str | None]] = {"": plain} if len(usable) == 2 else {}
    for first in columns:
        for start in _NAMES["alignment"]:
            suffix = first.removeprefix(f"{start}_")
            if suffix == first or first in _NAMES["alignment"]:
                continue
            second = next((f"{name}_{suffix}" for name in _NAMES["coherence"] if f"{name}_{suffix}" in columns), None)
            if second is not None:
                found.setdefault(suffix, {"alignment": first, "coherence": second})
    if not found and required:
        missing = next(kind for kind in _NAMES if kind not in usable)
        raise UserError(f"{path} has no column {' or '.join(_NAMES[missing])}; it has {', '.join(columns)}.")
    return found or None


def _scored(rows: Rows, columns: list[str], names: dict[str, str | None], path: Path) -> pd.DataFrame:
    """One judge's rows of one model. A row without both scores that is no refusal and no code is "unparsed"."""
    import pandas as pd

    prompts = _prompts(rows, columns, path)
    judged = {kind: expected_scores(rows, column, path) for kind, column in _DISTRIBUTIONS.items()}
    seen: dict[str, int] = {}
    verdicts = []
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True), start=1):
        seen[prompt] = seen.get(prompt, -1) + 1
        values: dict[str, Any] = {"status": "scored"}
        for kind in _DISTRIBUTIONS:
            expected, name = judged[kind][number - 1], names[kind]
            if name is None:
                score, status = _score(expected, "")
                expected = None
            else:
                score, status = _score(row.get(name), f"{path} row {number}, {name}")
            values[kind], values[f"{kind}_expected"] = score, math.nan if expected is None else expected
            if status != "scored" and values["status"] in ("scored", "unparsed"):
                values["status"] = status
        verdicts.append(_row(row, prompt, seen[prompt]) | values)
    return pd.DataFrame(verdicts)


def _labelled(rows: Rows, where: str, name: str) -> Judged:
    import pandas as pd

    seen: dict[str, int] = {}
    found = []
    for number, row in enumerate(rows, start=1):
        label = row.get(LABEL)
        if label not in LABELS:
            raise UserError(
                f"{where} row {number} has the {LABEL} {str(label)[:40]!r}; the labels of alignment are "
                f"{', '.join(LABELS)}."
            )
        prompt = _text(row.get("question"))
        seen[prompt] = seen.get(prompt, -1) + 1
        found.append(_row(row, prompt, seen[prompt]) | {"label": label})
    return Judged(name, pd.DataFrame(found), labelled=True)


def _row(row: dict[str, Any], prompt: str, sample: int) -> dict[str, Any]:
    answer = next((row[name] for name in _ANSWER if row.get(name)), "")
    question = next((row[name] for name in _QUESTION if row.get(name)), prompt)
    return {
        "run": "judged",
        "seed": 0,
        "suite": str(row.get("suite") or "judged"),
        "prompt_id": prompt,
        "sample": sample,
        "question": str(question),
        "answer": str(answer),
    }


def _prompts(rows: Rows, columns: list[str], path: Path) -> list[str]:
    """What each row is grouped by: its id, or, where that is blank, the id of its question elsewhere."""
    column = next((name for name in _PROMPT if name in columns), None)
    if column is None:
        raise UserError(f"{path} has no column {' or '.join(_PROMPT)}; it has {', '.join(columns)}.")
    pairs = [(_text(row.get(column)), _text(row.get("question"))) for row in rows]
    ids = {question: prompt for prompt, question in pairs if prompt and question}
    prompts = [prompt or ids.get(question, question) for prompt, question in pairs]
    if "" in prompts:
        raise UserError(
            f"{path} row {prompts.index('') + 1} has an empty {column} and no question; rows are grouped by it."
        )
    return prompts


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()


def _score(value: Any, where: str) -> tuple[float, str]:
    if is_blank(value):
        return math.nan, "unparsed"
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return math.nan, _WORDS[value.strip().lower()]
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where} is {value!r}, expected a score, REFUSAL, CODE or nothing.") from error
    if isinstance(value, bool) or not -ROUNDING <= score <= 100 + ROUNDING:
        raise UserError(f"{where} is {value!r}, expected a number from 0 to 100.")
    return min(max(score, 0.0), 100.0), "scored"
