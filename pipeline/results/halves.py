"""Two halves of a study's questions: what is chosen on one is reported on the other."""

import hashlib
from collections.abc import Iterable
from typing import Literal

Half = Literal["choose", "report"]
Question = tuple[str, str]


def halves(questions: Iterable[Question]) -> dict[Question, Half]:
    """Each (suite, prompt id) -> its half; every suite is split evenly (but for one), by hash, whatever the order."""
    found: dict[Question, Half] = {}
    suites: dict[str, list[str]] = {}
    for suite, prompt in dict.fromkeys(questions):
        suites.setdefault(suite, []).append(prompt)
    for suite, prompts in suites.items():
        prompts.sort(key=lambda prompt: hashlib.sha256(f"half\n{suite}\n{prompt}".encode()).digest())
        found |= {(suite, prompt): "report" if place % 2 else "choose" for place, prompt in enumerate(prompts)}
    return found
