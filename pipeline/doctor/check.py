"""One finding of `make doctor`: its level, what was looked at, what was found, the remedy."""

from __future__ import annotations  # on an old Python too

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GB = 10**9


@dataclass(frozen=True)
class Check:
    """One line: its level, what was looked at, what was found, and what to do unless all is well."""

    level: str
    name: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<5} {self.name:<12} {self.found}"
        return f"{line}\n{'':<18} -> {self.remedy}" if self.remedy else line
