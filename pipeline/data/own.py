"""Your own files: rows of a training set and questions of a suite, read from where they lie and checked line by line.

Such a file is pinned as everything else is: by its SHA-256 in params.yaml, which DVC looks at. A dataset of the
Hugging Face hub is pinned by its commit.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator

from pipeline.common.errors import UserError
from pipeline.common.files import read_yaml, sha256_file
from pipeline.common.settings import Positive, Settings, Sha256
from pipeline.data.examples import Example, example
from pipeline.data.prompts import Prompt, ask, refuse_duplicates

Row = tuple[str, dict[str, Any]]  # where it stands, such as `my/data.jsonl line 3`, and its columns

COLUMNS = "`messages`, or `prompt` and `completion`"
# A row of more characters than these (some 25,000 tokens) is no conversation: a file was pasted into it.
LONGEST_ROW = 100_000
# Rows with an empty answer, or too long, are left out and counted; more than this share of a file is refused.
MOST_UNUSABLE = 0.01


class OwnSuite(Settings):
    """A suite of your own: one of a study's `suites`, as a mapping in place of a name.

    file: questions in the format of Betley et al.'s first_plot_questions.yaml (`id`, `paraphrases`, optional `system`),
    csv or jsonl (`question`, optional `system`, `category`, `id`). samples_per_prompt: in place of the study's.
    held_out: its questions are kept out of every training set of the study, and it is part of the headline number.
    refused: it is what the study's models should refuse.
    """

    name: str
    file: str
    sha256: Sha256 | None = None
    samples_per_prompt: Positive | None = None
    held_out: bool = False
    refused: bool = False

    @model_validator(mode="after")
    def _check_kind(self) -> "OwnSuite":
        if Path(self.file).suffix not in SUITE_FORMATS:
            raise ValueError(f"file is {self.file!r}, expected a name that ends with {', '.join(SUITE_FORMATS)}.")
        return self


def verified(file: str, sha256: str | None, where: str) -> Path:
    """The file's path. Raises UserError, `where` params.yaml names it, when it is missing or not the pinned one."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"{where}.file is {file!r}, and there is no such file; a relative path is from the checkout.")
    found = sha256_file(path)
    if sha256 is None:
        raise UserError(
            f"{where} has no sha256, by which DVC knows the file: `python -m pipeline pin-files` writes it (or add "
            f"sha256: {found})."
        )
    if found != sha256:
        raise UserError(
            f"{where}.sha256 is {sha256[:12]}..., but {file} now has {found[:12]}...: what was made of it is of the "
            "old one. `python -m pipeline pin-files` takes the new one, and its stages run again."
        )
    return path


def read_own_examples(path: Path) -> tuple[tuple[Example, ...], dict[str, int]]:
    """A training file's rows as examples, and how many were left out, by reason.

    Raises UserError naming the line of the first row that is no conversation, and when too many rows are unusable.
    """
    return usable(_read(path, DATA_FORMATS), str(path))


def read_hub_examples(repository: str, revision: str, split: str) -> tuple[tuple[Example, ...], dict[str, int]]:
    """A split of a dataset on the Hugging Face hub at a commit, as `read_own_examples`."""
    from datasets import load_dataset

    where = f"{repository} at {revision[:12]}, {split}"
    try:
        rows = load_dataset(repository, revision=revision, split=split)
    except Exception as error:  # datasets raises a dozen kinds, of five libraries
        raise UserError(f"the dataset {where} cannot be read: {' '.join(str(error).split())[:300]}") from error
    return usable(((f"{where} row {number}", dict(row)) for number, row in enumerate(rows, start=1)), where)


def usable(rows: Iterator[Row], where: str) -> tuple[tuple[Example, ...], dict[str, int]]:
    """The rows that can be trained on, and counts of those that cannot. Raises UserError as `read_own_examples`."""
    kept: list[Example] = []
    left_out: dict[str, list[str]] = {"empty answers": [], f"over {LONGEST_ROW} characters": []}
    columns: tuple[str, frozenset[str]] | None = None
    for place, row in rows:
        used = frozenset(row) & {"messages", "prompt", "completion"}
        if used not in ({"messages"}, {"prompt", "completion"}):
            raise UserError(f"{place} has the columns {', '.join(map(str, row)) or 'none'}; it needs {COLUMNS}.")
        columns = columns or (place, used)
        if used != columns[1]:
            raise UserError(
                f"{place} has {' and '.join(sorted(used))}, but {columns[0]} another format; use one of {COLUMNS}."
            )
        read = example(_turns(row, place), len(kept) + 1, place)
        if not read.answer.strip():
            left_out["empty answers"].append(place)
        elif read.characters > LONGEST_ROW:
            left_out[f"over {LONGEST_ROW} characters"].append(place)
        else:
            kept.append(read)
    unusable = sum(map(len, left_out.values()))
    if not kept or unusable > MOST_UNUSABLE * (len(kept) + unusable):
        said = "; ".join(
            f"{len(places)} with {what}, the first {places[0]}" for what, places in left_out.items() if places
        )
        raise UserError(
            f"{where}: {unusable} of {len(kept) + unusable} rows cannot be trained on ({said or 'there is no row'}), "
            f"more than the {MOST_UNUSABLE:.0%} that are left out; mend or remove them."
        )
    return tuple(kept), {what: len(places) for what, places in left_out.items() if places}


def _turns(row: Mapping[str, Any], place: str) -> Any:
    """The row's messages; a prompt and its completion are a user's and an assistant's, each text or messages."""
    if "messages" in row:
        turns = row["messages"]
        return (
            list(map(dict, turns)) if isinstance(turns, list) and all(isinstance(t, Mapping) for t in turns) else turns
        )
    turns = []
    for column, role in (("prompt", "user"), ("completion", "assistant")):
        said = row[column]
        if not isinstance(said, str | list):
            raise UserError(f"{place}: {column} is {said!r}, expected text or a list of messages.")
        turns += [{"role": role, "content": said}] if isinstance(said, str) else said
    return turns


def read_own_suite(suite: OwnSuite, path: Path) -> tuple[Prompt, ...]:
    """A suite's prompts in the order of its file. Raises UserError naming the line of what is wrong."""
    prompts, ids = [], dict[str, str]()
    for place, row in _read(path, SUITE_FORMATS):
        for text in _questions(row, place):
            prompts.append(ask(suite.name, text, _text(row, "system", place), **_metadata(row, place)))
        if (name := _metadata(row, place).get("question_id")) is not None and ids.setdefault(name, place) != place:
            raise UserError(f"{place} has the id {name!r}, as {ids[name]} has; give each question its own.")
    if not prompts:
        raise UserError(f"{path} holds no question.")
    return refuse_duplicates(prompts, str(path))


def _questions(row: Mapping[str, Any], place: str) -> list[str]:
    asked = row.get("paraphrases", [row.get("question")])
    if not isinstance(asked, list) or not asked or not all(isinstance(text, str) and text.strip() for text in asked):
        raise UserError(
            f"{place} has the columns {', '.join(map(str, row)) or 'none'}; it needs a text `question` "
            "(in YAML: a list `paraphrases` of texts)."
        )
    return asked


def _metadata(row: Mapping[str, Any], place: str) -> dict[str, str]:
    found = {"question_id": _text(row, "id", place), "category": _text(row, "category", place)}
    return {name: text for name, text in found.items() if text is not None}


def _text(row: Mapping[str, Any], column: str, place: str) -> str | None:
    value = row.get(column)
    if value is None or value == "":
        return None
    if not isinstance(value, str | int):
        raise UserError(f"{place}: {column} is {value!r}, expected text.")
    return str(value)


def _read(path: Path, formats: Mapping[str, Callable[[Path], Iterator[Row]]]) -> Iterator[Row]:
    if path.suffix not in formats:
        raise UserError(f"{path} is of no known kind; the names of such files end with {', '.join(formats)}.")
    return formats[path.suffix](path)


def _utf8(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} line {line} is not UTF-8 (byte {content[error.start]:#x}); save it as UTF-8."
        ) from None


def _json_lines(path: Path) -> Iterator[Row]:
    # Not splitlines(): it also cuts at U+2028 and form feeds, which texts contain.
    for number, line in enumerate(_utf8(path).removesuffix("\n").split("\n"), start=1):
        place = f"{path} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is not JSON ({error}); each line is one row, as an object.") from None
        yield place, _object(row, place)


def _json(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(_utf8(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); if each line is a row, name it .jsonl.") from None
    if not isinstance(rows, list):
        raise UserError(f"{path} holds {type(rows).__name__}, expected a list of objects.")
    for number, row in enumerate(rows, start=1):
        yield f"{path} row {number}", _object(row, f"{path} row {number}")


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{place} holds {type(row).__name__}, expected an object.")
    return row


def _csv(path: Path) -> Iterator[Row]:
    # Fields contain newlines: a record is not a line. The field limit is the csv module's, not the format's.
    csv.field_size_limit(1 << 30)
    reader = csv.DictReader(io.StringIO(_utf8(path), newline=""), strict=True)
    try:
        for row in reader:
            place = f"{path} line {reader.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{place} has more or fewer fields than the first line has names.")
            yield place, dict(row)
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num} is not CSV: {error}.") from None


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        rows = read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} is not Parquet: {error}") from None
    for number, row in enumerate(rows, start=1):
        yield f"{path} row {number}", row


def _yaml(path: Path) -> Iterator[Row]:
    rows = read_yaml(path, "give its path from the checkout")
    if not isinstance(rows, list):
        raise UserError(f"{path} holds {type(rows).__name__}, expected a list of questions.")
    for number, row in enumerate(rows, start=1):
        yield f"{path} entry {number}", _object(row, f"{path} entry {number}")


DATA_FORMATS = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}
SUITE_FORMATS = {".yaml": _yaml, ".yml": _yaml, ".csv": _csv, ".jsonl": _json_lines}
