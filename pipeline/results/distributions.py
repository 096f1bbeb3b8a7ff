"""A judge's distribution over its first token, as a score (Betley et al. 2025)."""

from __future__ import annotations

import ast
import json
import math
import re
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError

LEAST_MASS = 0.25  # Betley et al. 2025: less probability than this on numbers is no score
ROUNDING = 1e-6  # a weighted mean of tokens can come out a hair above 100
_BLANK = {"", "nan", "none", "null", "na", "n/a"}
_SCORE_TOKEN = re.compile("100|[0-9]{1,2}")


def expected_scores(rows: list[dict[str, Any]], column: str, path: Path) -> list[float | None]:
    """Probability-weighted means of the integer tokens 0..100 in a column of judge's distributions.

    Cells are mappings from token to probability, or their text as JSON or a Python literal. A column
    with a negative value holds log-probabilities. A blank cell is None, as is a distribution with less
    than LEAST_MASS on integers (Betley et al. 2025). Raises UserError when a cell is something else.
    """
    cells = [
        _distribution(row.get(column), f"{path} row {number}, {column}") for number, row in enumerate(rows, start=1)
    ]
    logarithms = any(value < 0 for cell in cells if cell for value in cell.values())
    scores: list[float | None] = []
    for number, cell in enumerate(cells, start=1):
        total = weighted = 0.0
        for token, value in (cell or {}).items():
            if logarithms and value > ROUNDING:
                raise UserError(
                    f"{path} row {number}, {column}: token {token!r} has {value!r}, expected a log-probability, "
                    "as others of the column are negative."
                )
            text = token.strip()
            if _SCORE_TOKEN.fullmatch(text):
                probability = math.exp(value) if logarithms else value
                total += probability
                weighted += int(text) * probability
        scores.append(min(weighted / total, 100.0) if total >= LEAST_MASS else None)
    return scores


def _distribution(cell: Any, where: str) -> dict[str, float] | None:
    if is_blank(cell):
        return None
    found = cell
    if isinstance(cell, str):
        try:
            found = json.loads(cell)
        except (ValueError, RecursionError):  # ValueError: no JSON, or an integer of thousands of digits
            try:
                found = ast.literal_eval(cell)
            except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
                raise UserError(f"{where} is not a token distribution: {cell[:60]!r}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{where} holds {type(found).__name__}, expected tokens with probabilities.")
    for token, value in found.items():
        if not isinstance(value, int | float) or not value <= 1 + ROUNDING:
            raise UserError(f"{where}: token {token!r} has {str(value)[:20]}, expected a probability.")
    # exp() of anything below -1000 is 0, and takes no integer beyond a float's range
    return {str(token): float(max(value, -1000)) for token, value in found.items()}


def is_blank(value: Any) -> bool:
    """Whether a cell holds nothing, in one of the ways in which files say so."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.strip().lower() in _BLANK)
