"""A study claim by claim: published, reproduced, interval, tolerance, and PASS, DIFFERS, UNCLEAR or NOT RUN.

What was not run, or not all of it, is never a pass; what differs needs evidence. Claims, tolerances and the reason
for each are in published/claims.yaml; how numbers are compared is in pipeline/claim_check.py. The toy study's claims
are its own expectations: each must hold in every seed. Reads the verdicts under artifacts/, prints the table, and
writes it to artifacts/STUDY/verify.md (no DVC output: it is never deleted or hashed).

Exit status: 0 every claim passes; 1 something differs; 3 nothing differs, but something is unclear or was not run,
or the study has no claims; 2 the input is wrong.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from pipeline.audit.cells import Audit, audit
from pipeline.audit.claims import StudyClaims, read_claims
from pipeline.audit.comparison import NOTHING, Line, Reproduced, Result, check_claim
from pipeline.audit.published import FOLDER, read_published
from pipeline.audit.report import MEANINGS
from pipeline.common.errors import UserError
from pipeline.common.files import write_text
from pipeline.common.paths import ARTIFACTS
from pipeline.common.rows import Verdict, read_verdicts
from pipeline.params.load import load_params
from pipeline.params.schema import Params
from pipeline.results.tables import markdown_table

if TYPE_CHECKING:
    import pandas as pd

CLAIMS = FOLDER / "claims.yaml"
STATUS: dict[Result, int] = {"PASS": 0, "DIFFERS": 1, "UNCLEAR": 3, "NOT RUN": 3}
_COLUMNS = ("claim", "published", "reproduced", "interval", "tolerance", "result")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--study", help="a name under studies in params.yaml (default: what this machine can run)")
    parser.add_argument("--claims", type=Path, default=CLAIMS, help="the claims file (default: published/claims.yaml)")


def main(args: argparse.Namespace) -> int:
    """Print and write the study's table; return the exit status."""
    from pipeline.running.choose import choose_study

    params = load_params()
    name, _ = choose_study(params, args.study)
    results = audit(read_published())
    claims = read_claims(args.claims, name, results)
    if claims is None:
        print(f"Study {name} has no claims: {args.claims} has none for it, so nothing was verified.")
        return STATUS["NOT RUN"]
    lines = check_study(params, name, claims, results)
    path = ARTIFACTS / name / "verify.md"
    write_text(path, report(params, name, claims, lines))
    print(f"{table(lines)}{notes(lines)}\n{summary(lines)}\nWritten to {path}, with the reason for each tolerance.")
    return exit_status(lines)


def exit_status(lines: list[Line]) -> int:
    """1 if anything differs, else 3 if anything is unclear or was not run (or there is nothing), else 0."""
    found = {line.result for line in lines}
    if "DIFFERS" in found:
        return STATUS["DIFFERS"]
    return STATUS["PASS"] if found == {"PASS"} else STATUS["NOT RUN"]


def check_study(params: Params, name: str, claims: StudyClaims, results: Audit) -> list[Line]:
    """Every claim's line, in the order of the file; the expectations' where those are the study's claims."""
    from pipeline.results.metrics import verdict_frame

    verdicts = read_available(params, name)
    frame = verdict_frame(verdicts) if verdicts else None
    lines = []
    if claims.claims:
        full = results.published.designs[0]
        weights = {run: counts.prompts if counts else full for run, counts in results.counts.items()}
        reproduced = Reproduced(frame, weights)
        lines += [check_claim(claim, results, reproduced) for claim in claims.claims]
    if claims.expectations is not None:
        lines += check_expectations(params, name, frame)
    return lines


def read_available(params: Params, name: str) -> list[Verdict]:
    """The verdicts of the study's first judge, of every run that has been judged."""
    study = params.study(name)
    rows = []
    for run in params.runs_of(name):
        path = ARTIFACTS / name / "verdicts" / run / f"{study.judge}.jsonl"
        if path.exists():
            rows += (verdicts := [row for row in read_verdicts(path) if row.step is None])
            if strangers := {row.run for row in verdicts} - {run}:
                raise UserError(f"{path} holds verdicts of {', '.join(sorted(strangers))}; delete it and run again.")
    return rows


def check_expectations(params: Params, name: str, frame: pd.DataFrame | None) -> list[Line]:
    """The expectations of params.yaml: the first run's held-out misalignment above the second's, in every seed."""
    from pipeline.results.metrics import DEFINITIONS, metrics
    from pipeline.results.statistics import student_t_interval

    study = params.study(name)
    found: dict[tuple[str, int], float] = {}
    if frame is not None:
        rows = frame[frame["suite"].isin(study.held_out)]
        values = metrics(rows, DEFINITIONS[study.definition], ["run", "seed"])
        found = dict(zip(zip(values["run"], values["seed"], strict=True), values["misalignment_percent"], strict=True))
    lines = []
    for higher, lower in study.expectations:
        claim, tolerance = f"{higher} above {lower}", "above in every seed"
        wanted = [(run, seed) for run in (higher, lower) for seed in study.seeds]
        if missing := [f"seed {seed} of {run}" for run, seed in wanted if (run, seed) not in found]:
            lines.append(
                Line(claim=claim, published=NOTHING, tolerance=tolerance, result="NOT RUN", missing=tuple(missing))
            )
            continue
        gaps = [found[higher, seed] - found[lower, seed] for seed in study.seeds]
        held = sum(gap > 0 for gap in gaps)
        low, high = student_t_interval(gaps)
        lines.append(
            Line(
                claim=claim,
                published=NOTHING,
                reproduced=f"{sum(gaps) / len(gaps):+.1f}, above in {held} of {len(gaps)}",
                interval=f"{low:+.1f} to {high:+.1f}" if len(gaps) > 1 else NOTHING,
                tolerance=tolerance,
                result="PASS" if held == len(gaps) else "DIFFERS",
            )
        )
    return lines


def table(lines: list[Line]) -> str:
    """The lines as a Markdown table that also reads as plain text."""
    rows = [[str(getattr(line, column)) for column in _COLUMNS] for line in lines]
    return markdown_table(list(_COLUMNS), rows, [False, True, True, True, False, False])


def notes(lines: list[Line]) -> str:
    """What was missing, and what the audit says of the published numbers: one line each."""
    found = {"Not run": list(dict.fromkeys(gap for line in lines for gap in line.missing))}
    for line in lines:
        for run, kind in line.kinds:
            about = found.setdefault(f"Audit, {kind} ({MEANINGS[kind]})", [])
            about += [run] * (run not in about)
    return "".join(f"\n{what}: {', '.join(names)}.\n" for what, names in found.items() if names)


def summary(lines: list[Line]) -> str:
    """How many claims came out how."""
    count = Counter(line.result for line in lines)
    return ", ".join(f"{count[result]} {result}" for result in get_args(Result)) + f" of {len(lines)} claims."


def report(params: Params, name: str, claims: StudyClaims, lines: list[Line]) -> str:
    """verify.md: the table, what is missing, and why each tolerance is what it is."""
    study = params.study(name)
    reasons: dict[str, list[str]] = {}
    for claim in claims.claims:
        reasons.setdefault(claims.reasons[claim.reason].strip(), []).append(f"{claim.claim} ({claim.tolerance:g})")
    if claims.expectations is not None:
        reasons[claims.expectations.strip()] = [line.claim for line in lines]
    why = "\n".join(f"- {reason} *Claims: {'; '.join(names)}.*" for reason, names in reasons.items())
    return f"""# {study.title} [{name}]: claim by claim

Written by `python -m pipeline verify --study {name}` from the verdicts of judge `{study.judge}`.
{summary(lines)} Only PASS is a pass: UNCLEAR is neither borne out nor contradicted.

{table(lines)}
{notes(lines)}
## Why these tolerances

{why}
"""
