"""A study's answers as the explorer takes them: columns of small numbers, every text once, gzip in base64.

Texts repeat (a question is asked of every run, a judge says "95" a thousand times), so rows hold places in one list
of texts. What is misaligned is decided here, by the study's definition, and nowhere in the page's script.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

from pipeline.common.rows import STATUSES, Verdict
from pipeline.export.rows import Judged, experts_of, replies_of, values_of
from pipeline.params.schema import Params
from pipeline.results.definitions import DEFINITIONS

# How a row counts, by its place in `labels`.
LABELS = ("not counted", "aligned", "misaligned")


class Places:
    """Values, each once, in the order in which they came; a value's place is what rows hold."""

    def __init__(self) -> None:
        self._places: dict[Any, int] = {}

    def __getitem__(self, value: Any) -> int:
        return self._places.setdefault(value, len(self._places))

    @property
    def values(self) -> list[Any]:
        """The values by place."""
        return list(self._places)


def explorer_data(params: Params, study: str, rows: Mapping[str, list[Judged]], *, answers: bool) -> dict[str, Any]:
    """Everything that the explorer shows, as one JSON value.

    `rows` are the judged answers by run. Without `answers` it holds no text of a prompt, model or judge: scores,
    statuses and keys alone. Lists under `columns` and `judges` have a place for every row, in the order of `rows`.
    """
    settings = params.study(study)
    texts, runs, suites, prompts, seeds, steps = Places(), Places(), Places(), Places(), Places(), Places()
    none = texts[""]
    columns: dict[str, list[Any]] = {name: [] for name in ("run", "seed", "prompt", "sample", "step", "cut")}
    columns |= {name: [] for name in ("question", "answer", "thinking")}
    judges: dict[str, list[tuple[Verdict, bool | None]]] = {judge: [] for judge in settings.judges}
    definition = DEFINITIONS[settings.definition]
    for run, judged in rows.items():
        for row in judged:
            answer = row.answer
            columns["run"].append(runs[run])
            columns["seed"].append(seeds[answer.seed])
            columns["prompt"].append(prompts[suites[answer.suite], answer.prompt_id])
            columns["sample"].append(answer.sample)
            columns["step"].append(steps[answer.step])
            columns["cut"].append(int(answer.finish != "stop"))
            for name in ("question", "answer", "thinking"):
                columns[name].append(texts[getattr(answer, name)] if answers else none)
            for judge, verdict in row.verdicts.items():
                judges[judge].append((verdict, definition.label(verdict)))
    judged_by = [{"name": judge, **_judge(found, texts, answers)} for judge, found in judges.items()]
    return {
        "study": study,
        "answers": answers,
        "statuses": STATUSES,
        "labels": LABELS,
        "runs": [_run(params, name) for name in runs.values],
        "suites": suites.values,
        "held_out": [suite for suite in settings.held_out if suite in suites.values],
        "prompts": prompts.values,
        "seeds": seeds.values,
        "steps": steps.values,
        "texts": texts.values,
        "columns": columns,
        "judges": judged_by,
    }


def pack(value: Any) -> str:
    """A JSON value as gzip in base64; equal values give equal text."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # Lone surrogates, which JSON can hold and UTF-8 cannot, as the browser's decoder would show them.
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 9, mtime=0)).decode("ascii")


def _judge(rows: list[tuple[Verdict, bool | None]], texts: Places, answers: bool) -> dict[str, Any]:
    """A judge's columns from its verdicts with their labels; `values` and `replies` have a column an aspect."""
    values = [values_of(verdict) for verdict, _ in rows]
    replies = [replies_of(verdict) if answers else {} for verdict, _ in rows]
    aspects = list(dict.fromkeys(aspect for row in values for aspect in row))
    return {
        "status": [STATUSES.index(verdict.status) for verdict, _ in rows],
        "label": [0 if label is None else 1 + label for _, label in rows],
        "values": {aspect: [_short(row.get(aspect)) for row in values] for aspect in aspects},
        "replies": {aspect: [texts[row.get(aspect, "")] for row in replies] for aspect in aspects},
    }


def _short(score: float | str | None) -> float | int | str | None:
    """A score without ".0", as most are whole; a label as it is."""
    if score is None or isinstance(score, str):
        return score
    return int(score) if float(score).is_integer() else round(score, 3)


def _run(params: Params, name: str) -> dict[str, Any]:
    run, base = params.run(name), params.base_of(name)
    return {
        "name": name,
        "model": base,
        "base": params.untrained(name) if run.data is not None else None,
        "experts": experts_of(params, name),
        "data": run.trained_on,
    }


def count_rows(rows: Mapping[str, list[Judged]]) -> int:
    """How many answers there are, those along training included."""
    return sum(map(len, rows.values()))
