"""What the authors claim: `published/claims.yaml`, checked, with each number as it was printed.

The file says what is claimed, where the published number stands and what may differ; the number itself comes
out of `published/` through the audit (pipeline/results/audit_cells.py). Where the audit finds that a printed
number does not follow from the published counts, and the counts determine another, a reproduced number is
compared with that one, as the two are made the same way; the printed one stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.audit.cells import Audit, Cell
from pipeline.common.errors import UserError
from pipeline.common.files import read_yaml
from pipeline.common.settings import Listed, Settings, build

COLUMNS = ("avg_alignment", "misalignment_percent", "misalignment_rate", "strong_reject_percent")


class Claim(Settings):
    """One claim of claims.yaml.

    kind: `value`, one run's number; `direction`, the sign of runs[0] - minus[0]; `order`, the rank order of
    runs, or of runs[i] - minus[i] where `minus` is given. table, column: where the published numbers stand, as
    `make audit` names its cells. tolerance: of a value, the points that it may differ by beyond sampling noise;
    of a direction, the points that the interval may reach to the other side; of an order, the least Spearman
    correlation with the published one. A direction or an order that misses it differs where the interval excludes
    what was published, and is unclear where not. reason: which of claims.yaml's `reasons` the tolerance has.
    """

    claim: str
    kind: Literal["value", "direction", "order"]
    table: str
    column: str
    runs: Listed[str]
    minus: Listed[str] = ()
    tolerance: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Claims:
    """One study's part of claims.yaml.

    `reasons`: what each tolerance allows for; `expectations`: why the study's own expectations (params.yaml)
    are its claims, None where they are not.
    """

    reasons: dict[str, str]
    claims: tuple[Claim, ...]
    expectations: str | None


class ClaimsFile(Settings):
    """claims.yaml.

    reasons: what each tolerance allows for, by name. claims: by study. expectations: of a study whose own
    expectations in params.yaml are its claims, what is compared.
    """

    reasons: dict[str, str]
    claims: dict[str, list]
    expectations: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class StudyClaims:
    """One study's claims; `expectations` as in ClaimsFile, None where the study has published claims."""

    claims: tuple[Claim, ...]
    reasons: dict[str, str]
    expectations: str | None


@dataclass(frozen=True, kw_only=True)
class Number:
    """A published number, or a difference of two: as printed, as recomputed, and what the audit says of it.

    `value` is what a reproduced number is compared with. `rows`: how many rows were judged for it. `kinds`: the
    discrepancies that the audit found in it, as (run, kind).
    """

    printed: float
    value: float
    rows: int | None
    kinds: tuple[tuple[str, str], ...]

    def __sub__(self, other: Number) -> Number:
        rows = None if self.rows is None or other.rows is None else min(self.rows, other.rows)
        kinds = tuple(dict.fromkeys(self.kinds + other.kinds))
        return Number(printed=self.printed - other.printed, value=self.value - other.value, rows=rows, kinds=kinds)


def read_claims(path: Path, study: str, audit: Audit) -> StudyClaims | None:
    """A study's claims, None where the file has none. Raises UserError naming the claim and the field."""
    file = build(ClaimsFile, read_yaml(path, "it is part of the repository: restore it"), str(path))
    if study not in file.claims and study not in file.expectations:
        return None
    claims: dict[str, Claim] = {}
    for place, values in enumerate(file.claims.get(study, ())):
        name = values.get("claim") if isinstance(values, Mapping) else None
        where = f"{path}: claims.{study}, claim {name!r}" if name else f"{path}: claims.{study}[{place}]"
        claim = build(Claim, values, where)
        _check(claim, file.reasons, audit, where)
        if claim.claim in claims:
            raise UserError(f"{where} is there twice; give each claim a name of its own.")
        claims[claim.claim] = claim
    return StudyClaims(claims=tuple(claims.values()), reasons=file.reasons, expectations=file.expectations.get(study))


def published(audit: Audit, claim: Claim) -> list[Number]:
    """The published numbers that a claim is about: of each run, or of each run less its `minus`."""
    numbers = [_number(_cell(audit, claim, run)) for run in claim.runs]
    others = [_number(_cell(audit, claim, run)) for run in claim.minus]
    return [number - other for number, other in zip(numbers, others, strict=True)] if others else numbers


def _number(cell: Cell) -> Number:
    value = cell.published if cell.recomputed is None else cell.recomputed
    kinds = () if cell.kind == "agrees" else ((cell.run, str(cell.kind)),)
    return Number(printed=cell.published, value=value, rows=cell.judged_rows, kinds=kinds)


def _cell(audit: Audit, claim: Claim, run: str) -> Cell:
    """The published cell. Raises KeyError when there is none."""
    for cell in audit.cells:
        if (cell.table, cell.run, cell.metric) == (claim.table, run, claim.column):
            return cell
    raise KeyError(run)


def _check(claim: Claim, reasons: Mapping[str, str], audit: Audit, where: str) -> None:
    """What types do not say: references that exist, as many runs as the kind takes, a tolerance with a reason."""
    if not reasons.get(claim.reason, "").strip():
        raise UserError(f"{where}: reason is {claim.reason!r}; the reasons are {', '.join(reasons)}.")
    if claim.column not in COLUMNS:
        raise UserError(f"{where}: column is {claim.column!r}; the columns are {', '.join(COLUMNS)}.")
    if claim.kind == "order":
        if len(claim.runs) < 2 or len(claim.minus) not in (0, len(claim.runs)):
            raise UserError(
                f"{where}: runs has {len(claim.runs)} and minus {len(claim.minus)}; kind order takes 2 runs or "
                "more, and as many of minus or none."
            )
        if not 0 < claim.tolerance <= 1:
            raise UserError(f"{where}: tolerance is {claim.tolerance}, expected above 0 and up to 1 (a correlation).")
    else:
        wanted = 1 if claim.kind == "direction" else 0
        if len(claim.runs) != 1 or len(claim.minus) != wanted:
            raise UserError(
                f"{where}: runs has {len(claim.runs)} and minus {len(claim.minus)}; kind {claim.kind} takes 1 and "
                f"{wanted}."
            )
        if claim.tolerance < 0:
            raise UserError(f"{where}: tolerance is {claim.tolerance}, expected 0 or more.")
    for field, runs in (("runs", claim.runs), ("minus", claim.minus)):
        for run in runs:
            try:
                _cell(audit, claim, run)
            except KeyError:
                tables = ", ".join(dict.fromkeys(cell.table for cell in audit.cells))
                raise UserError(
                    f"{where}: {field} has {run!r}, which has no {claim.column} in table {claim.table!r}; "
                    f"the tables are {tables}, with the runs of published/runs.csv."
                ) from None
    numbers = [number.value for number in published(audit, claim)]
    if claim.kind == "direction" and numbers[0] == 0:
        raise UserError(f"{where}: runs and minus have equal published numbers, which is no direction.")
    if claim.kind == "order" and len(set(numbers)) == 1:
        raise UserError(f"{where}: runs have equal published numbers, which is no order.")
