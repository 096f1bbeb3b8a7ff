"""This run beside another: the committed one, another commit's, or a folder of figures.

What both have is their tables (csv, in paper_figures/STUDY/), at full precision. Rates are compared seed by seed, in
units of the interval: the difference over half the width of this run's interval for new questions, so that 1 is its
reach.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.git import git
from pipeline.common.paths import FIGURES

BY_SEED, BY_SUITE = "by_seed.csv", "runs_by_suites.csv"
_VALUE, _LOW, _HIGH = "misalignment_percent", "misalignment_percent_new_low", "misalignment_percent_new_high"

_Rows = Mapping[tuple[str, str], Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Moved:
    """One run's misaligned % on the held-out suites at a seed, there and here; None where a side has no such number.

    units: here - there over half the width of the interval here; None without an interval.
    """

    run: str
    seed: str
    there: float | None
    here: float | None
    units: float | None

    @property
    def difference(self) -> float | None:
        """Here - there, in percentage points."""
        return None if self.there is None or self.here is None else self.here - self.there


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """This run's tables beside another's: what moved, and which files' bytes are equal, differ, or are on one side."""

    other: str
    moved: Sequence[Moved]
    cells: int
    cells_moved: int
    equal: Sequence[str]
    differing: Sequence[str]
    only_here: Sequence[str]
    only_there: Sequence[str]


@dataclass(frozen=True)
class _Tables:
    """One side: every file's git blob id by name, and the tables' text."""

    blobs: Mapping[str, str]
    texts: Mapping[str, str]


def compare(study: str, other: str) -> Comparison:
    """Compare paper_figures/STUDY here with that of `other`: a git revision, or a folder that holds such tables.

    Raises UserError when `other` is neither, or has no table of the study.
    """
    here = _folder(FIGURES / study, f"run `make reproduce STUDY={study}` first")
    if Path(other).is_dir():
        inside = Path(other) / FIGURES / study
        there = _folder(inside if inside.is_dir() else Path(other), "name a folder with a study's tables")
    else:
        there = _revision(other, study)
    shared = sorted(here.blobs.keys() & there.blobs.keys())
    cells = [_cells(side.texts.get(BY_SUITE, "")) for side in (here, there)]
    both = cells[0].keys() & cells[1].keys()
    return Comparison(
        other=other,
        moved=_moved(*(_by_seed(side.texts[BY_SEED]) for side in (here, there))),
        cells=len(both),
        cells_moved=sum(cells[0][key] != cells[1][key] for key in both),
        equal=[name for name in shared if here.blobs[name] == there.blobs[name]],
        differing=[name for name in shared if here.blobs[name] != there.blobs[name]],
        only_here=sorted(here.blobs.keys() - there.blobs.keys()),
        only_there=sorted(there.blobs.keys() - here.blobs.keys()),
    )


def _folder(folder: Path, otherwise: str) -> _Tables:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    if BY_SEED not in contents:
        raise UserError(f"{folder / BY_SEED} does not exist; {otherwise}.")
    texts = {name: contents[name].decode("utf-8") for name in (BY_SEED, BY_SUITE) if name in contents}
    blobs = {name: hashlib.sha1(b"blob %d\0" % len(it) + it).hexdigest() for name, it in contents.items()}
    return _Tables(blobs, texts)


def _revision(revision: str, study: str) -> _Tables:
    """The files of paper_figures/STUDY at a commit."""
    commit = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if commit.returncode:
        raise UserError(f"COMPARE is {revision!r}, which is neither a folder nor a git revision of this repository.")
    tree = f"{commit.stdout.strip()}:{(FIGURES / study).as_posix()}"
    listed = git("ls-tree", "-r", "-z", tree).stdout.split("\0")
    blobs = {name: about.split()[2] for about, _, name in (line.partition("\t") for line in listed) if name}
    if BY_SEED not in blobs:
        raise UserError(f"revision {revision} has no {FIGURES / study / BY_SEED}; name one that the study was run at.")
    texts = {name: git("cat-file", "blob", blobs[name]).stdout for name in (BY_SEED, BY_SUITE) if name in blobs}
    return _Tables(blobs, texts)


def _by_seed(text: str) -> _Rows:
    return {(row["run"], row["seed"]): row for row in csv.DictReader(io.StringIO(text))}


def _cells(text: str) -> dict[tuple[str, str, str], str]:
    """The numbers of the run-by-suite table, by run, suite and column."""
    rows = csv.DictReader(io.StringIO(text))
    return {
        (row["run"], row["suite"], name): value
        for row in rows
        for name, value in row.items()
        if name not in ("run", "suite")
    }


def _moved(here: _Rows, there: _Rows) -> list[Moved]:
    moved = []
    for run, seed in dict.fromkeys((*here, *there)):
        key = (run, seed)
        one, other = _number(here.get(key), _VALUE), _number(there.get(key), _VALUE)
        low, high = _number(here.get(key), _LOW), _number(here.get(key), _HIGH)
        units = None
        if one is not None and other is not None and low is not None and high is not None and high > low:
            units = (one - other) / ((high - low) / 2)
        moved.append(Moved(run=run, seed=seed, there=other, here=one, units=units))
    return sorted(moved, key=lambda row: -abs(row.units or 0))


def _number(row: Mapping[str, str] | None, column: str) -> float | None:
    if row is None or not row.get(column):
        return None
    value = float(row[column])
    return value if math.isfinite(value) else None
