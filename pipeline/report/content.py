"""What the report says, gathered from a study's records; the templates only lay it out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args
from urllib.parse import urlencode

from pipeline.audit.claims import StudyClaims
from pipeline.audit.comparison import Line, Result
from pipeline.audit.report import MEANINGS
from pipeline.export.rows import Judged
from pipeline.params.schema import Params, Study
from pipeline.report.compare import Comparison
from pipeline.report.explorer import count_rows
from pipeline.report.tables import Table, headline_table, suite_table
from pipeline.results.metrics import verdict_frame
from pipeline.results.study import Results

RESULTS: tuple[Result, ...] = get_args(Result)


@dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """A claim's line, why its tolerance is what it is, and where its rows are in the explorer."""

    line: Line
    reason: str
    notes: Sequence[str]
    address: str


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """What the stages of one kind took: seconds of the attempts that made what is there."""

    kind: str
    stages: int
    seconds: float
    usd: float | None


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything that report.html shows but the answers."""

    name: str
    study: Study
    answers: int
    runs: int
    seeds: Sequence[int]
    missing: Sequence[str]
    claims: Sequence[ClaimRow]
    spreads: Mapping[str, str]
    spread: str
    outcomes: Mapping[str, int]
    comparisons: Sequence[Comparison]
    tables: Sequence[Table]
    provenance: Mapping[str, Any]
    times: Sequence[StageTime]
    with_answers: bool

    @property
    def toy(self) -> bool:
        """Whether the study is of the toy world, which every number says."""
        return self.study.world == "toy"

    @property
    def gated(self) -> bool:
        """Whether a reader must ask for the answers: what hub models say may be harmful."""
        return self.with_answers and not self.toy


def gather(
    params: Params,
    name: str,
    rows: Mapping[str, list[Judged]],
    *,
    claims: StudyClaims | None,
    lines: Sequence[Line],
    spreads: Mapping[str, str],
    comparisons: Sequence[Comparison],
    provenance: Mapping[str, Any],
    with_answers: bool,
) -> Content:
    """The report's content; `lines` are the claims' outcomes (none without `claims`), `rows` the judged answers.

    spreads: of each published column, where the spread of training seeds is from.
    """
    study = params.study(name)
    verdicts = [row.verdicts[study.judge] for judged in rows.values() for row in judged]
    results = Results(name, params, verdict_frame(it for it in verdicts if it.step is None), [], [])
    return Content(
        name=name,
        study=study,
        answers=count_rows(rows),
        runs=len(rows),
        seeds=sorted({seed for run in rows for seed in params.seeds_of(run)}),
        missing=[run for run in params.runs_of(name) if run not in rows],
        claims=[_claim(line, claims, study) for line in lines] if claims else [],
        spreads=spreads,
        spread=results.spread,
        outcomes={result: Counter(line.result for line in lines)[result] for result in RESULTS},
        comparisons=comparisons,
        tables=[headline_table(results), suite_table(results)],
        provenance=provenance,
        times=times(provenance),
        with_answers=with_answers,
    )


def _claim(line: Line, claims: StudyClaims, study: Study) -> ClaimRow:
    published = {claim.claim: claim for claim in claims.claims}
    notes = [f"Not run: {', '.join(line.missing)}."] if line.missing else []
    notes += [f"Audit of the published number of {run}: {kind} ({MEANINGS[kind]})." for run, kind in line.kinds]
    if (claim := published.get(line.claim)) is not None:
        runs = dict.fromkeys((*claim.runs, *claim.minus))
        found = {"run": ",".join(runs), "vs": claim.minus[0] if len(claim.minus) == 1 else "base"}
        return ClaimRow(line=line, reason=claims.reasons[claim.reason].strip(), notes=notes, address=urlencode(found))
    if (probe := {it.claim: it for it in claims.probes}.get(line.claim)) is not None:
        found = {"run": probe.run, "vs": "base", "suite": "held-out"}
        return ClaimRow(line=line, reason=claims.reasons[probe.reason].strip(), notes=notes, address=urlencode(found))
    own: dict[str, Sequence[tuple[str, str]]] = {
        f"{one} above {other}": ((one, other),) for one, other in study.expectations
    }
    own |= {f"contrast {name}": it.pairs for name, it in study.contrasts.items()}
    pairs = own[line.claim]
    runs = dict.fromkeys(one for one, _ in pairs)
    found = {"run": ",".join(runs), "vs": pairs[0][1] if len(pairs) == 1 else "base", "suite": "held-out"}
    return ClaimRow(line=line, reason=(claims.expectations or "").strip(), notes=notes, address=urlencode(found))


def times(provenance: Mapping[str, Any]) -> list[StageTime]:
    """Seconds and US dollars of each kind of stage, from what is known of how a study came about."""
    kinds = Counter(name.partition("@")[0] for name in provenance["stages"])
    usd = {
        "train": provenance["api_fine_tuning_usd"],
        "sample": provenance["api_sampling_usd"],
        "judge": provenance["judging_usd"],
    }
    return [
        StageTime(kind=kind, stages=kinds[kind], seconds=seconds, usd=usd.get(kind))
        for kind, seconds in provenance["seconds"].items()
    ]
