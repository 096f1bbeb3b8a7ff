"""A study claim by claim: published, reproduced, interval, tolerance, and PASS, DIFFERS, UNCLEAR or NOT RUN.

What was not run, or not all of it, is never a pass; what differs needs evidence. Claims, tolerances and the reason
for each are in published/claims.yaml; how numbers are compared is in pipeline/audit/comparison.py. A study's own
expectations and contrasts (params.yaml) are differences paired over its seeds. Reads the verdicts under artifacts/,
prints the table, and writes it to artifacts/STUDY/verify.md (no DVC output: it is never deleted or hashed).

Exit status: 0 nothing differs and all was run (what is unclear is named, and is no failure of a reproduction); 1
something differs; 3 something was not run, or the study has no claims; 2 the input is wrong.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from pipeline.audit.cells import audit
from pipeline.audit.claims import Record, StudyClaims, read_claims
from pipeline.audit.comparison import Line, Result, check_claim, check_contrast, corrected, widened_contrast
from pipeline.audit.labels import read_labels
from pipeline.audit.published import FOLDER, read_published
from pipeline.audit.report import MEANINGS
from pipeline.audit.reproduced import MEASURES, Reproduced, Spread, by_tag, own_spread
from pipeline.common.files import write_text
from pipeline.common.paths import ARTIFACTS, FIGURES
from pipeline.params.load import load_params
from pipeline.params.schema import Params
from pipeline.results.tables import MISSING, markdown_table

if TYPE_CHECKING:
    import pandas as pd

Pairs = tuple[tuple[str, str], ...]
CLAIMS = FOLDER / "claims.yaml"
STATUS: dict[Result, int] = {"PASS": 0, "UNCLEAR": 0, "DIFFERS": 1, "NOT RUN": 3}
TOY_SEEDS = FIGURES / "toy" / "by_seed.csv"
# A claim's column -> the toy study's column of the same kind of number, and what makes it the same unit.
_TOY_COLUMNS = {
    "avg_alignment": ("mean_alignment", 1.0),
    "misalignment_percent": ("misalignment_percent", 1.0),
    "misaligned_percent": ("misalignment_percent", 1.0),
    "misalignment_rate": ("misalignment_percent", 0.01),
    "strong_reject_percent": ("refused_percent", 1.0),
}
_COLUMNS = ("claim", "published", "reproduced", "interval", "tolerance", "p", "result", "p_holm", "corrected")
_HEADS = ("claim", "published", "reproduced", "95 % interval", "to pass", "p", "result", "p, Holm", "after Holm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--study", help="a name under studies in params.yaml (default: what this machine can run)")
    parser.add_argument("--claims", type=Path, default=CLAIMS, help="the claims file (default: published/claims.yaml)")


def main(args: argparse.Namespace) -> int:
    """Print and write the study's table; return the exit status."""
    from pipeline.running.choose import choose_study

    params = load_params()
    name, _ = choose_study(params, args.study)
    record = Record(audit(read_published()), read_labels())
    claims = read_claims(args.claims, name, record)
    if claims is None:
        print(f"Study {name} has no claims: {args.claims} has none for it, so nothing was verified.")
        return STATUS["NOT RUN"]
    lines, sources = check_study(params, name, claims, record)
    path = ARTIFACTS / name / "verify.md"
    write_text(path, report(params, name, claims, lines, sources))
    print(f"{table(lines)}{notes(lines, sources)}\n{summary(lines)}")
    print(f"Written to {path}, with the reason for each tolerance.")
    return exit_status(lines)


def exit_status(lines: list[Line]) -> int:
    """1 if anything differs, else 3 if anything was not run (or there is nothing), else 0."""
    found = {line.result for line in lines}
    if "DIFFERS" in found:
        return STATUS["DIFFERS"]
    return STATUS["NOT RUN"] if "NOT RUN" in found or not found else STATUS["PASS"]


def check_study(params: Params, name: str, claims: StudyClaims, record: Record) -> tuple[list[Line], dict[str, str]]:
    """Every claim's line, in the order of the file, then the study's own; and where each column's spread is from."""
    from pipeline.results.definitions import DEFINITIONS
    from pipeline.results.metrics import verdict_frame
    from pipeline.results.study import read_run_verdicts

    study = params.study(name)
    folder = ARTIFACTS / name / "verdicts"
    verdicts = [row for row in read_run_verdicts(params, name, folder, study.judge, available=True) if row.step is None]
    frame = verdict_frame(verdicts) if verdicts else None
    lines: list[Line] = []
    sources: dict[str, str] = {}

    def trained(run: str) -> bool:
        settings = params.runs.get(run.partition("+")[0])
        return settings is None or settings.data is not None

    if claims.claims:
        reproduced = Reproduced(
            None if frame is None else by_tag(frame), _weights(record), DEFINITIONS[study.definition]
        )
        columns = dict.fromkeys(claim.column for claim in claims.claims)
        spreads = {column: _spread(column, claims, reproduced, trained) for column in columns}
        sources = {column: it.source for column, it in spreads.items()}
        lines += [check_claim(claim, record, reproduced, spreads, trained) for claim in claims.claims]
    if claims.expectations is not None:
        spread = None if len(study.seeds) > 1 else _toy_spread("misalignment_percent")
        if spread is not None:
            sources["the study's own expectations"] = spread.source
        lines += check_own(params, name, frame, spread, trained)
    lines += check_probes(params, name, claims)
    return corrected(lines), sources


def _weights(record: Record) -> dict[str, dict[str, int]]:
    """How many prompts each suite had in each published run."""
    full = record.audit.published.designs[0]
    weights = {run: counts.prompts if counts else full for run, counts in record.audit.counts.items()}
    return weights | {run: {record.suite: 8} for run, suite in record.labels if suite == record.suite}


def _spread(column: str, claims: StudyClaims, reproduced: Reproduced, trained: Callable[[str], bool]) -> Spread:
    """How far training seeds lie apart in a column: in this study's own seeds, else in the toy study's."""
    runs = dict.fromkeys(run for claim in claims.claims for run in (*claim.runs, *claim.minus))
    there = [run for run in runs if trained(run) and column in MEASURES and reproduced.missing(run, column) is None]
    return own_spread([reproduced.estimate(run, column) for run in there]) or _toy_spread(column)


def _toy_spread(column: str) -> Spread:
    """How far the toy study's training seeds lie apart in the column that stands for `column`."""
    from pipeline.results.frames import seed_spread

    if not TOY_SEEDS.exists():
        return Spread(math.nan, 0, f"nowhere: the study has one seed, and {TOY_SEEDS} does not exist")
    import pandas as pd

    name, scale = _TOY_COLUMNS[column]
    rows = pd.read_csv(TOY_SEEDS)
    tuned = rows[rows["role"] == "fine-tuned"]
    deviation, freedom = seed_spread({str(run): list(own[name].dropna()) for run, own in tuned.groupby("run")})
    return Spread(
        scale * deviation, freedom, f"the toy study's seeds ({scale * deviation:.2f}, {freedom} degrees of freedom)"
    )


def check_own(
    params: Params, name: str, frame: pd.DataFrame | None, spread: Spread | None, trained: Callable[[str], bool]
) -> list[Line]:
    """The study's expectations and contrasts: differences of held-out misalignment, paired over its seeds.

    A contrast that the study analyses over models is the mean of these, with the interval over them. A lever within one
    model (results/levers.py) is held to no sign.
    A difference of one seed's runs has the noise of answers alone; `spread` adds what each training brings in.
    """
    from pipeline.results.contrasts import Runs, contrast, lever_of, models_of
    from pipeline.results.definitions import DEFINITIONS

    study = params.study(name)
    rows = None if frame is None else frame[frame["suite"].isin(study.held_out)]
    runs = None if rows is None or rows.empty else Runs(rows, DEFINITIONS[study.definition])
    wanted: list[tuple[str, Pairs, Pairs, str, tuple[str, ...]]] = [
        (f"{one} above {other}", ((one, other),), (), "above", ()) for one, other in study.expectations
    ]
    wanted += [
        (f"contrast {key}", it.pairs, it.control, it.expected, models_of(params, it.pairs))
        for key, it in study.contrasts.items()
        if lever_of(params, it) is None
    ]
    lines = []
    for claim, pairs, control, expected, models in wanted:
        named = dict.fromkeys(run for pair in (*pairs, *control) for run in pair)
        have = {run: runs.seeds(run) if runs else [] for run in named}
        missing = tuple(
            f"seed {seed} of {run}" for run in named for seed in params.seeds_of(run) if seed not in have[run]
        )
        found = contrast(runs, pairs, control, models=models) if runs and not missing else None
        if found is not None and found.n == 1 and spread is not None:
            found = widened_contrast(
                found, spread.half(sum(trained(run) for pair in (*pairs, *control) for run in pair))
            )
        lines.append(check_contrast(claim, found, missing, expected))
    return lines


def check_probes(params: Params, name: str, claims: StudyClaims) -> list[Line]:
    """What the study's probes are held to: experts that carry more than others do, remedies that leave half of it."""
    from pipeline.results.probes import available_probe

    lines = []
    for it in claims.probes:
        probe = available_probe(params, name, it.run, ARTIFACTS / name / "probes")
        found = None
        if probe is not None and it.part in probe.names:
            found = probe.beyond_others(str(it.part))
        elif probe is not None and it.left in set(probe.interventions["name"]):
            found = probe.beyond_half(str(it.left))
        lines.append(check_contrast(it.claim, found, (f"{it.part or it.left} of {it.run}, probed",)))
    return lines


def table(lines: list[Line]) -> str:
    """The lines as a Markdown table that also reads as plain text."""
    rows = [[_cell(getattr(line, column)) for column in _COLUMNS] for line in lines]
    return markdown_table(list(_HEADS), rows, [False, True, True, True, False, True, False, True, False])


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return MISSING if math.isnan(value) else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def notes(lines: list[Line], sources: dict[str, str]) -> str:
    """What was missing, where training's spread is from, what the audit says of published numbers: one line each."""
    found = {"Not run": list(dict.fromkeys(gap for line in lines for gap in line.missing))}
    found["Unclear"] = [line.claim for line in lines if line.result == "UNCLEAR"]
    for column, source in sources.items():
        found.setdefault(f"The original has one training seed; the spread of seeds is from {source}", []).append(column)
    for line in lines:
        for run, kind in line.kinds:
            about = found.setdefault(f"Audit, {kind} ({MEANINGS[kind]})", [])
            about += [run] * (run not in about)
    return "".join(f"\n{what}: {', '.join(names)}.\n" for what, names in found.items() if names)


def summary(lines: list[Line]) -> str:
    """How many claims came out how, and how many are left after Holm's correction."""
    raw, after = Counter(line.result for line in lines), Counter(line.corrected for line in lines)
    text = ", ".join(f"{raw[result]} {result}" for result in get_args(Result))
    corrected_text = f"{after['PASS']} PASS and {after['DIFFERS']} DIFFERS"
    return f"{text} of {len(lines)} claims; after Holm's correction {corrected_text}."


def report(params: Params, name: str, claims: StudyClaims, lines: list[Line], sources: dict[str, str]) -> str:
    """verify.md: the table, what is missing, and why each tolerance is what it is."""
    study = params.study(name)
    reasons: dict[str, list[str]] = {}
    for claim in claims.claims:
        reasons.setdefault(claims.reasons[claim.reason].strip(), []).append(claim.claim)
    if claims.expectations is not None:
        published = {claim.claim for claim in claims.claims} | {it.claim for it in claims.probes}
        reasons[claims.expectations.strip()] = [line.claim for line in lines if line.claim not in published]
    for it in claims.probes:
        reasons.setdefault(claims.reasons[it.reason].strip(), []).append(it.claim)
    why = "\n".join(f"- {reason} *Claims: {'; '.join(names)}.*" for reason, names in reasons.items())
    return f"""# {study.title} [{name}]: claim by claim

Written by `python -m pipeline verify --study {name}` from the verdicts of judge `{study.judge}`.
{summary(lines)} Only PASS is a pass: UNCLEAR is neither borne out nor contradicted.

{table(lines)}
{notes(lines, sources)}
## Why these tolerances

{why}
"""
