"""Edits of params.yaml: an entry is written, or a value, and every other byte stays as it is.

The places come from the YAML parser; what is written goes through the parser again before the file is replaced.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.errors import UserError
from pipeline.common.files import sha256_file, write_text
from pipeline.common.paths import PARAMS


def add_entry(section: str, name: str, entry: Mapping[str, Any]) -> str:
    """Write `name: entry` as the last one of a section such as `runs` or `bases.hub`, on one line; return the line.

    An entry of that name is completed where it says no more than the new one, and in the same words. Raises UserError
    when the section is missing, or has the name for something else.
    """
    text = PARAMS.read_text(encoding="utf-8")
    node = _compose(text)
    for key in section.split("."):
        node = _value(node, key)
    if not isinstance(node, yaml.MappingNode) or node.flow_style or not node.value:
        raise UserError(f"{PARAMS} has no section {section} with entries, one below another, to add to.")
    if (there := _value(node, name)) is not None:
        given = [(key.value, value.value) for key, value in there.value] if _is_map(there) else []
        said = [(key, value) for key, value in entry.items() if isinstance(value, str)]
        if not given or len(given) == len(entry) or not all(one in said for one in given):
            raise UserError(f"{PARAMS}: {section}.{name} is there; choose another name, or edit that entry.")
        _replace(text[: there.start_mark.index] + _flow(entry) + text[_end(there) :])
        return f"{name}: {_flow(entry)}"
    line = f"{' ' * node.value[0][0].start_mark.column}{name}: {_flow(entry)}"
    end = text.find("\n", _end(node))
    before, after = (text + "\n", "") if end < 0 else (text[: end + 1], text[end + 1 :])
    _replace(before + line + "\n" + after)
    return line.strip()


def pin_files(only_new: bool = False) -> list[str]:
    """Write the SHA-256 beside each `file` of a run's data or a study's suites; return what was written, in words.

    only_new: where there is none yet; else also where the file has changed. Raises UserError for a missing file.
    """
    text = PARAMS.read_text(encoding="utf-8")
    written: list[str] = []
    edits: list[tuple[int, int, str]] = []
    for node in _own_files(_compose(text)):
        file, known = _value(node, "file"), _value(node, "sha256")
        path = Path(file.value).expanduser()
        if not path.is_file():
            raise UserError(f"{PARAMS} line {file.start_mark.line + 1}: there is no file {file.value!r}.")
        digest = sha256_file(path)
        if known is None:
            indent = "\n" + " " * node.value[0][0].start_mark.column
            start = end = file.end_mark.index
            addition = f", sha256: {digest}" if node.flow_style else f"{indent}sha256: {digest}"
        elif only_new or known.value == digest:
            continue
        else:
            start, end, addition = known.start_mark.index, known.end_mark.index, digest
        edits.append((start, end, addition))
        written.append(f"{file.value}: {digest}")
    for start, end, addition in sorted(edits, reverse=True):
        text = text[:start] + addition + text[end:]
    if edits:
        _replace(text)
    return written


def _compose(text: str) -> Any:
    """The nodes of a YAML text, each with its place; by libyaml where PyYAML has it."""
    return yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _own_files(node: Any) -> Iterator[Any]:
    """The mappings that name a file: a run's data or one of its parts, and a study's suites."""
    for run in _values(_value(node, "runs")):
        data = _value(run, "data")
        yield from (part for part in [data, *_items(data)] if _value(part, "file") is not None)
    for study in _values(_value(node, "studies")):
        yield from (suite for suite in _items(_value(study, "suites")) if _value(suite, "file") is not None)


def _value(node: Any, key: str) -> Any:
    """The node of a mapping's value, None where there is none."""
    return (
        next((value for name, value in getattr(node, "value", ()) if name.value == key), None)
        if _is_map(node)
        else None
    )


def _values(node: Any) -> list[Any]:
    return [value for _, value in node.value] if _is_map(node) else []


def _items(node: Any) -> list[Any]:
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _is_map(node: Any) -> bool:
    return isinstance(node, yaml.MappingNode)


def _end(node: Any) -> int:
    """Where a node ends: the parser puts a block's end behind the comments that follow it."""
    if isinstance(node, yaml.ScalarNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


def _flow(value: Any) -> str:
    """A value as YAML on one line; text is quoted where YAML would read something else."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float):
        text = repr(value)
        return text if "e" not in text or "." in text else text.replace("e", ".0e")
    if isinstance(value, str):
        inner = yaml.safe_load(f"[{value}]") if value.isprintable() and _is_yaml(f"[{value}]") else None
        return value if inner == [value] else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def _is_yaml(text: str) -> bool:
    try:
        yaml.safe_load(text)
    except yaml.YAMLError:
        return False
    return True


def _replace(text: str) -> None:
    """Replace params.yaml, if what comes out of the edit is right. Raises UserError, and replaces nothing, if not."""
    from pipeline.params.load import load_params

    candidate = PARAMS.with_name(f".{PARAMS.name}.new")
    try:
        write_text(candidate, text)
        load_params(candidate)
    except UserError as error:
        raise UserError(str(error).replace(str(candidate), str(PARAMS))) from None
    finally:
        candidate.unlink(missing_ok=True)
    write_text(PARAMS, text)
