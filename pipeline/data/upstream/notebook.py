"""The authors' judge prompts, read out of their notebook without running it."""

import ast
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import read_json


def judge_prompts_of(path: Path) -> dict[str, str]:
    """Take the two judge prompts out of a Jupyter notebook by reading its source with `ast`.

    Nothing is executed and nothing else is kept: of all assignments at the top level of code cells, only
    string constants that hold {question} and {answer} are looked at. The one whose name or text speaks
    of coherence is `coherence`, the one that may answer REFUSAL is `alignment`. Raises UserError, which
    never quotes the notebook, unless there is exactly one of each.
    """
    notebook = read_json(path)
    found: dict[str, set[str]] = {"alignment": set(), "coherence": set()}
    for text in _prompt_constants(notebook):
        found["alignment" if "REFUSAL" in text else "coherence"].add(text)
    for name, texts in found.items():
        if len(texts) != 1:
            raise UserError(f"{path}: found {len(texts)} {name} judge prompts, expected 1; is it the pinned revision?")
    return {name: texts.pop() for name, texts in found.items()}


def _prompt_constants(notebook: Any) -> list[str]:
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    texts = []
    for cell in cells if isinstance(cells, list) else []:
        source = cell.get("source", "") if isinstance(cell, dict) and cell.get("cell_type") == "code" else ""
        lines = (source if isinstance(source, str) else "".join(source)).splitlines(keepends=True)
        # IPython's own lines (magics, shell commands) are not Python.
        code = "".join("\n" if line.lstrip().startswith(("%", "!")) else line for line in lines)
        try:
            tree = ast.parse(code)
        except SyntaxError:  # a cell that is not plain Python holds no constant that could be read
            continue
        texts += [text for node in tree.body if (text := _constant(node)) is not None]
    return texts


def _constant(node: ast.stmt) -> str | None:
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Constant):
        return None
    text = node.value.value
    return text if isinstance(text, str) and "{question}" in text and "{answer}" in text else None
