"""Rows of a file that somebody published, whatever format it is in: as mappings from column to value.

csv, tsv, JSON lines (.jsonl, .ndjson; a byte order mark and blank lines are skipped), JSON (a list of rows, or an
object of lists by tag), Parquet, and Inspect's .eval logs. Anything else is refused by name.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.text import storable

Rows = list[dict[str, Any]]
TAG = "tag"  # the column that an object's keys become


def read_rows(path: Path) -> Rows:
    """The rows of a file by its ending. Raises UserError naming the file, and the row where one is wrong."""
    if path.is_dir() or path.suffix not in READERS:
        raise UserError(f"{path} is {_what(path)}; a judged file ends in {', '.join(READERS)}.")
    try:
        rows = READERS[path.suffix](path)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist.") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from error
    if not rows:
        raise UserError(f"{path} has no rows.")
    return rows


def _what(path: Path) -> str:
    return "a folder" if path.is_dir() else f"a {path.suffix} file" if path.suffix else "a file without an ending"


def _delimited(path: Path) -> Rows:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # answers can be longer than the default limit
    delimiter = "\t" if path.suffix == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True, delimiter=delimiter)
            reader.fieldnames = header = [name.strip() for name in reader.fieldnames or ()]
            rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{path} is not a readable {path.suffix[1:]} file: {error}. Is it cut short?") from error
    if doubled := {name for name in header if name and header.count(name) > 1}:
        raise UserError(f"{path} has the column {', '.join(sorted(doubled))} more than once.")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise UserError(f"{path} row {number} has more or fewer cells than the header.")
    return rows


def _json_lines(path: Path) -> Rows:
    rows = []
    # Not splitlines(): it also cuts at U+2028 and form feeds, which answers contain.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path} line {number} is not JSON ({error}): is the file cut short?") from error
        rows.append(_object(row, f"{path} line {number}"))
    return rows


def _json(path: Path) -> Rows:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): is the file cut short?") from error
    if isinstance(content, list):
        return [_object(row, f"{path} row {number}") for number, row in enumerate(content, start=1)]
    if isinstance(content, dict) and content and all(isinstance(rows, list) for rows in content.values()):
        return [
            {TAG: tag.strip(), **_object(row, f"{path}, {tag!r} row {number}")}
            for tag, rows in content.items()
            for number, row in enumerate(rows, start=1)
        ]
    found = f"an object with the keys {', '.join(list(content)[:5])}" if isinstance(content, dict) else "no rows"
    raise UserError(f"{path} holds {found}; expected a list of rows, or an object of lists by tag.")


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where} holds {type(row).__name__}, expected an object.")
    return {column: storable(value) if isinstance(value, str) else value for column, value in row.items()}


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    path.open("rb").close()  # the file's own errors before the library's
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is no readable Parquet file: {str(error).splitlines()[0]}.") from error


def _inspect(path: Path) -> Rows:
    """Samples of an Inspect log: model, question, answer, and the scores of each scorer as columns.

    A scorer that gives one value makes the column that bears its name; one that gives several, a column each.
    """
    try:
        from inspect_ai.log import read_eval_log
    except ImportError as error:
        raise UserError(f"{path} is an Inspect log: `pip install inspect-ai` and run this again.") from error
    path.open("rb").close()
    try:
        log = read_eval_log(str(path))
    except Exception as error:  # zip, JSON and pydantic errors, none of them ours
        raise UserError(f"{path} is no readable Inspect log ({type(error).__name__}).") from error
    rows = []
    for sample in log.samples or ():
        row: dict[str, Any] = {
            "model": log.eval.model,
            "question_id": str(sample.id),
            "question": sample.input if isinstance(sample.input, str) else sample.input[-1].text,
            "answer": sample.output.completion,
        }
        for name, score in (sample.scores or {}).items():
            row |= dict(score.value) if isinstance(score.value, dict) else {name: _inspect_value(score)}
        rows.append(row)
    return rows


def _inspect_value(score: Any) -> Any:
    """A score's value; of one without (Inspect's NaN), what its reason says: a refusal, code, or nothing."""
    if isinstance(score.value, float) and math.isnan(score.value):
        return {"refusal": "REFUSAL", "code": "CODE"}.get(score.reason, "")
    return score.value


READERS: dict[str, Callable[[Path], Rows]] = {
    ".csv": _delimited,
    ".tsv": _delimited,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".eval": _inspect,
}
