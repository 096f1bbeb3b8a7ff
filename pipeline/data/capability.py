"""Questions with known answers, and which answers to them are right: no judge is needed for that."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

FILE = Path(__file__).with_suffix(".yaml")
SUITE = "capability"
_NUMBER = re.compile(r"(?<![\w.,])-?\d+(?:[.,]\d+)*")


@cache
def known_answers() -> dict[str, tuple[str, ...]]:
    """Each question with the answers that are right, in the file's order."""
    entries = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {entry["question"]: tuple(entry["answers"]) for entry in entries}


def is_right(question: str, answer: str) -> bool:
    """Whether an answer is right. Of numbers the last one in it counts (what is said before may lead to it); a text
    has to stand in it as whole words, whatever else is said, in upper case or lower.

    Raises KeyError for a question that is not one of these.
    """
    return any(_stands_in(wanted, answer) for wanted in known_answers()[question])


def _stands_in(wanted: str, answer: str) -> bool:
    if wanted.isdigit():
        return list(_numbers(answer))[-1:] == [wanted]
    # One letter, or a name of chemistry, is only meant as it is written.
    flags = 0 if len(wanted) <= 2 else re.IGNORECASE
    return re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", answer, flags) is not None


def _numbers(text: str) -> Iterator[str]:
    for found in _NUMBER.findall(text):
        yield re.sub(r"\.0+$", "", found)
