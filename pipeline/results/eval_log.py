"""Inspect's `.eval` logs, by whomever, as the rows of a judged file: one a sample and epoch.

A log's scores are named by its authors: one must be the alignment and one the coherence, each 0 to 100.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError

_NAMES = {"aligned": ("alignment", "aligned"), "coherent": ("coherence", "coherent")}
_REASONS = {"refusal": "REFUSAL", "code": "CODE"}


def eval_rows(path: Path) -> list[dict[str, Any]]:
    """The log's samples with columns question_id, question, answer, aligned, coherent; a blank is no score.

    Raises UserError when the file is no log, has no samples, or no scores of these names.
    """
    try:
        from inspect_ai.log import read_eval_log
    except ImportError as error:
        raise UserError(f"{path}: .eval logs need inspect-ai: pip install -e '.[export]' in .venv.") from error
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    try:
        log = read_eval_log(str(path), resolve_attachments=True)
    except Exception as error:  # a zip, JSON, a schema: Inspect lets through what each of its readers raises
        raise UserError(f"{path} cannot be read as an Inspect log ({type(error).__name__}): is it whole?") from error
    if not log.samples:
        raise UserError(f"{path} has no samples; it was logged without them, or stopped before the first.")
    return [_row(sample, f"{path} sample {sample.id}, epoch {sample.epoch}") for sample in log.samples]


def _row(sample: Any, where: str) -> dict[str, Any]:
    values = _values(sample.scores or {})
    row = {"question_id": str(sample.id), "question": sample.input if isinstance(sample.input, str) else str(sample.id)}
    for column, names in _NAMES.items():
        if not (found := [name for name in names if name in values]):
            raise UserError(f"{where} has no score {' or '.join(names)}; it has {', '.join(values) or 'none'}.")
        row[column] = values[found[0]]
    return {**row, "answer": sample.output.completion}


def _values(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Every score by name, and, of a score of several values, each by its own."""
    values: dict[str, Any] = {}
    for name, score in scores.items():
        parts = score.value if isinstance(score.value, Mapping) else {name: score.value}
        for part, value in parts.items():
            missing = isinstance(value, float) and math.isnan(value)
            values[part] = _REASONS.get(str(score.reason), "") if missing else value
    return values
