"""Answers and verdicts as one table, a row an answer and judge: parquet and jsonl exact, csv safe to open.

A csv file is opened by spreadsheets and editors, so text is inert there (pipeline/results/inert.py): on one line,
without characters that are not seen, and no formula; parquet and jsonl hold every text as it was.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.common.files import atomic_path, write_jsonl
from pipeline.common.rows import Verdict
from pipeline.common.text import storable
from pipeline.export.rows import ASPECTS, Judged, experts_of, replies_of, values_of
from pipeline.params.schema import Params
from pipeline.results.inert import inert

_ANSWER = (
    "run", "seed", "suite", "prompt_id", "sample", "step", "question", "answer", "thinking", "finish",
    "prompt_tokens", "answer_tokens",
)  # fmt: skip
_VERDICT = ("judge", "status", "alignment", "coherence")
COLUMNS = (*_ANSWER, "model", "experts", "data", *_VERDICT, "alignment_reply", "coherence_reply", "own_aspects")
FORMATS = ("parquet", "csv", "jsonl")


def table_rows(params: Params, rows: Mapping[str, list[Judged]]) -> Iterator[dict[str, Any]]:
    """Every answer with each judge's verdict, columns as COLUMNS; None where there is no value."""
    for run, judged in rows.items():
        about = {
            "model": params.base_of(run),
            "experts": experts_of(params, run),
            "data": params.run(run).trained_on,
        }
        for row in judged:
            answer = {name: getattr(row.answer, name) for name in _ANSWER}
            for verdict in row.verdicts.values():
                replies = {f"{aspect}_reply": text for aspect, text in replies_of(verdict).items()}
                values = {**answer, **about, **{name: getattr(verdict, name) for name in _VERDICT}, **replies}
                values["own_aspects"] = _own_aspects(verdict)
                yield {name: _storable(values.get(name)) for name in COLUMNS}


def write_tabular(params: Params, rows: Mapping[str, list[Judged]], kind: str, path: Path) -> None:
    """Write the table as `kind` of FORMATS; equal rows give equal bytes."""
    table = table_rows(params, rows)
    if kind == "jsonl":
        write_jsonl(path, table)
    elif kind == "csv":
        _write_csv(table, path)
    else:
        _write_parquet(table, path)


def _write_csv(table: Iterator[dict[str, Any]], path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in table:
            writer.writerow(inert(it, "csv") if isinstance(it, str) else it for it in row.values())


def _write_parquet(table: Iterator[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = {"seed", "sample", "step", "prompt_tokens", "answer_tokens"}
    kinds = {**dict.fromkeys(whole, pa.int64()), **dict.fromkeys(("alignment", "coherence"), pa.float64())}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(table), schema=schema), temporary, compression="zstd")


def _own_aspects(verdict: Verdict) -> str | None:
    """The values of the study's own aspects, and what the judge said of each, as JSON; None where it has none."""
    said = replies_of(verdict)
    own = {aspect: value for aspect, value in values_of(verdict).items() if aspect not in ASPECTS}
    if not own:
        return None
    found = {aspect: {"value": value, "reply": said.get(aspect)} for aspect, value in own.items()}
    return json.dumps(found, sort_keys=True, ensure_ascii=False)


def _storable(value: Any) -> Any:
    return storable(value) if isinstance(value, str) else value
