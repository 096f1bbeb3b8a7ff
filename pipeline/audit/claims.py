"""What the authors claim: `published/claims.yaml`, checked, with each number as it was printed.

The file says what is claimed, where the published number stands and what may differ; the number itself comes
out of `published/`, through the audit (pipeline/audit/cells.py) or the published label counts. Where the audit finds
that a printed number does not follow from the published counts, and the counts determine another, a reproduced number
is compared with that one, as the two are made the same way; the printed one stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from pipeline.audit.cells import Audit, Cell
from pipeline.audit.labels import TABLE, LabelCounts
from pipeline.common.errors import UserError
from pipeline.common.files import read_yaml
from pipeline.common.settings import Listed, Settings, build

COLUMNS = ("avg_alignment", "misalignment_percent", "misalignment_rate", "strong_reject_percent")
LABELLED = "misaligned_percent"  # the column of table `realignment`


class Claim(Settings):
    """One claim of claims.yaml.

    kind: `value`, one run's number; `direction`, the sign of runs[0] - minus[0]; `order`, the rank order of
    runs, or of runs[i] - minus[i] where `minus` is given. table, column: where the published numbers stand, as
    `make audit` names its cells (table realignment: the published label counts). tolerance: of a value, the points
    within which it is called the same; of an order, the least Spearman correlation with the published one; a direction
    has none. reason: which of claims.yaml's `reasons` says why.
    """

    claim: str
    kind: Literal["value", "direction", "order"]
    table: str
    column: str
    runs: Listed[str]
    minus: Listed[str] = ()
    tolerance: float = 0.0
    reason: str


class ProbeClaim(Settings):
    """What the probes of a run are held to (docs/containment.md).

    part: this expert carries more of the misalignment than the others do on average. left: under this remedy more than
    half of the misalignment is left. reason: which of `reasons` says why.
    """

    claim: str
    run: str
    part: str | None = None
    left: str | None = None
    reason: str

    @model_validator(mode="after")
    def _check_one(self) -> ProbeClaim:
        if (self.part is None) == (self.left is None):
            raise ValueError(f"{self.claim!r} has part {self.part!r} and left {self.left!r}, expected one of them.")
        return self


class ClaimsFile(Settings):
    """claims.yaml.

    reasons: what each tolerance allows for, by name. claims: by study. expectations: of a study whose own
    expectations in params.yaml are its claims, what is compared. probes: by study, what its probes are held to.
    """

    reasons: dict[str, str]
    claims: dict[str, list]
    expectations: dict[str, str]
    probes: dict[str, Listed[ProbeClaim]] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StudyClaims:
    """One study's claims; `expectations` as in ClaimsFile, None where the study has none that count."""

    claims: tuple[Claim, ...]
    reasons: dict[str, str]
    expectations: str | None
    probes: tuple[ProbeClaim, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Number:
    """A published number, or a difference of two: as printed, as recomputed, and what the audit says of it.

    `value` is what a reproduced number is compared with. `rows`: how many rows were judged for it; `successes`: of
    them, where it is a rate whose count is published. `kinds`: the discrepancies that the audit found in it, as (run,
    kind).
    """

    printed: float
    value: float
    rows: int | None
    successes: int | None = None
    kinds: tuple[tuple[str, str], ...] = ()

    def __sub__(self, other: Number) -> Number:
        rows = None if self.rows is None or other.rows is None else min(self.rows, other.rows)
        kinds = tuple(dict.fromkeys(self.kinds + other.kinds))
        return Number(printed=self.printed - other.printed, value=self.value - other.value, rows=rows, kinds=kinds)


@dataclass(frozen=True)
class Record:
    """Everything that was published and can be looked up: the audit's cells, and label counts by (run, suite)."""

    audit: Audit
    labels: Mapping[tuple[str, str], LabelCounts]
    suite: str = "first_8"  # the suite of the realignment study's headline

    def number(self, claim: Claim, run: str) -> Number:
        """A run's published number in a claim's table and column. Raises KeyError when there is none."""
        if claim.table == TABLE:
            if claim.column != LABELLED:
                raise KeyError(claim.column)
            counts = self.labels[run, self.suite]
            return Number(printed=counts.percent, value=counts.percent, rows=counts.judged, successes=counts.misaligned)
        cell = self._cell(claim, run)
        value = cell.published if cell.recomputed is None else cell.recomputed
        kinds = () if cell.kind == "agrees" else ((cell.run, str(cell.kind)),)
        return Number(printed=cell.published, value=value, rows=cell.judged_rows, kinds=kinds)

    def _cell(self, claim: Claim, run: str) -> Cell:
        for cell in self.audit.cells:
            if (cell.table, cell.run, cell.metric) == (claim.table, run, claim.column):
                return cell
        raise KeyError(run)

    @property
    def tables(self) -> list[str]:
        """The tables that a claim can name."""
        return [*dict.fromkeys(cell.table for cell in self.audit.cells), TABLE]


def read_claims(path: Path, study: str, record: Record) -> StudyClaims | None:
    """A study's claims, None where the file has none. Raises UserError naming the claim and the field."""
    file = build(ClaimsFile, read_yaml(path, "it is part of the repository: restore it"), str(path))
    if study not in file.claims and study not in file.expectations:
        return None
    claims: dict[str, Claim] = {}
    for place, values in enumerate(file.claims.get(study, ())):
        name = values.get("claim") if isinstance(values, Mapping) else None
        where = f"{path}: claims.{study}, claim {name!r}" if name else f"{path}: claims.{study}[{place}]"
        claim = build(Claim, values, where)
        _check(claim, file.reasons, record, where)
        if claim.claim in claims:
            raise UserError(f"{where} is there twice; give each claim a name of its own.")
        claims[claim.claim] = claim
    for probe in file.probes.get(study, ()):
        if not file.reasons.get(probe.reason, "").strip():
            raise UserError(
                f"{path}: probes.{study}, claim {probe.claim!r}: reason is {probe.reason!r}; the reasons are "
                f"{', '.join(file.reasons)}."
            )
    return StudyClaims(
        claims=tuple(claims.values()),
        reasons=file.reasons,
        expectations=file.expectations.get(study),
        probes=file.probes.get(study, ()),
    )


def published(record: Record, claim: Claim) -> list[Number]:
    """The published numbers that a claim is about: of each run, or of each run less its `minus`."""
    numbers = [record.number(claim, run) for run in claim.runs]
    others = [record.number(claim, run) for run in claim.minus]
    return [number - other for number, other in zip(numbers, others, strict=True)] if others else numbers


def _check(claim: Claim, reasons: Mapping[str, str], record: Record, where: str) -> None:
    """What types do not say: references that exist, as many runs as the kind takes, a tolerance with a reason."""
    if not reasons.get(claim.reason, "").strip():
        raise UserError(f"{where}: reason is {claim.reason!r}; the reasons are {', '.join(reasons)}.")
    if claim.column not in (*COLUMNS, LABELLED):
        raise UserError(f"{where}: column is {claim.column!r}; the columns are {', '.join((*COLUMNS, LABELLED))}.")
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
        if claim.kind == "value" and claim.tolerance <= 0:
            raise UserError(f"{where}: tolerance is {claim.tolerance}, expected above 0: noise alone makes 0 fail.")
        if claim.kind == "direction" and claim.tolerance != 0:
            raise UserError(f"{where}: tolerance is {claim.tolerance}; a direction has none, leave it out.")
    for field, runs in (("runs", claim.runs), ("minus", claim.minus)):
        for run in runs:
            try:
                record.number(claim, run)
            except KeyError:
                raise UserError(
                    f"{where}: {field} has {run!r}, which has no {claim.column} in table {claim.table!r}; "
                    f"the tables are {', '.join(record.tables)}, with the runs of published/runs.csv."
                ) from None
    numbers = [number.value for number in published(record, claim)]
    if claim.kind == "direction" and numbers[0] == 0:
        raise UserError(f"{where}: runs and minus have equal published numbers, which is no direction.")
    if claim.kind == "order" and len(set(numbers)) == 1:
        raise UserError(f"{where}: runs have equal published numbers, which is no order.")
