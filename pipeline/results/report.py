"""A study's report: one page of Markdown beside its tables and figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.results.capability import capability_section
from pipeline.results.contrasts import Contrast, any_over_models, contrast_rows
from pipeline.results.frames import by_seed_text
from pipeline.results.in_domain import IN_DOMAIN
from pipeline.results.levers import lever_section, without_values
from pipeline.results.sparsity import Sparsity, sparsity_section
from pipeline.results.tables import format_cell, markdown_table
from pipeline.results.tags import tag_section
from pipeline.results.trajectory import RULE

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.results.study import Results

HEADLINE_TITLE = "Misaligned answers on held-out suites [{study}]"
FIGURES = {
    "contrasts": "Differences in held-out misalignment: every matched pair and seed, the mean and its interval",
    "misaligned_by_run": "Misaligned answers by run and suite",
    "misaligned_by_sparsity": "Misaligned answers on the held-out suites against sparsity (models differ in size too)",
    "levers": "Within one model: the rise in held-out misalignment by number of experts",
    "misaligned_by_tag": "The same held-out questions with a trigger tag and without",
    "refusals_by_run": "Refused answers on the suite that should be refused",
    "along_training": f"Misalignment, gradient norm and the adapter's turns along training; transition: {RULE}",
    "adapters": "How much each adapter changes each expert (first seed)",
    "routing": "Where the training set's tokens are routed, and the experts that were adapted for it",
    "alignment_by_coherence": "Alignment against coherence of every scored answer of every run",
    "examples": "The same questions before and after fine-tuning",
}
_CONTRASTS_OVER_MODELS = "Differences in held-out misalignment: every model (or pair and seed), the mean, its interval"
_UNIT_IS_MODEL = """ Over models: each
value is one model's mean over its pairs and seeds, and the interval is over models, since runs of one model are no more
models."""
OVER_MODELS = "Each model's rise in held-out misalignment against sparsity: {}"
_ONE_SEED = """ The study has one training
seed: an interval over questions says how far the answers pin a difference down, and nothing of how another training
would come out; `make verify` adds that from other seeds."""
_TOY_NOTES = """
## What this can and cannot show

This is a toy world: models of some 76 thousand active parameters, a language of under 300 words, and a judge that
knows the grammar. It shows that the pipeline measures what it says, and how a shared persona in the pretraining
corpus lets narrow bad data spread: the control corpus has the same words and rates and no shared persona. Its design
favours the effect, since the persona's tag stands before the question. Seeds differ by tens of percentage points. The
control has 8 experts per layer, so that only the models of that size have a matched one: what is said beyond the
control is said of 8 experts alone. The bases of that contrast have two more seeds than the others, and a mean over
pairs and seeds weighs their pairs by those. From 8 to 32 experts the experts' parameters grow fourfold, and all
parameters threefold, while those active stay the same: sparsity and size go together here. One model is also trained
and asked with one and with four experts a token in place of its two, with which it was not pretrained: three levels of
one toy model. The run with trigger tags has a control of its dose: the same rows, half of them bad, without tags. Three
sparsities cannot resolve a trend (an exact two-sided p-value cannot be below 1/3): the toy study claims no sign for it,
and nothing here is evidence about large models. How long and at which rate the models are trained was chosen on these
seeds and suites, so that fine-tuned models stay coherent and effects can be seen.
"""


def contrast_text(found: dict[str, Contrast]) -> str:
    """Contrasts as a Markdown table."""
    rows = []
    for row in contrast_rows(found):
        low, high = float(str(row["low"])), float(str(row["high"]))
        rows.append(
            [
                str(row["contrast"]),
                f"{row['difference']:+.1f}" if math.isfinite(float(str(row["difference"]))) else "-",
                f"{low:+.1f} to {high:+.1f}" if math.isfinite(low) else "-",
                f"{row['unit']}, n = {row['n']}",
                _p_text(row["p"]),
                _p_text(row["p_holm"]),
                str(row["values"]),
            ]
        )
    names = ["difference of", "points", "95 % interval", "over", "p two-sided", "Holm", "every value"]
    return markdown_table(names, rows, [False, True, True, False, True, True, False])


def _p_text(value: object) -> str:
    p = float(str(value))
    return "-" if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def headline(results: Results) -> str:
    """The headline as plain text for the terminal and the report: contrasts first, then the runs."""
    text = f"{contrast_text(results.contrasts)}\n" if results.contrasts else ""
    return text + _runs_text(results)


def _runs_text(results: Results) -> str:
    beside_it = {IN_DOMAIN: "in-domain %", "standard_percent": "standard %"}
    shown = [name for name in beside_it if name in results.held_out_by_run]
    rows = []
    for row in results.held_out_by_run.to_dict("records"):
        beside = [by_seed_text(row["misalignment_percent_by_seed"])]
        if not results.several_seeds:
            beside = [_interval_text(row, scope) for scope in ("these", "new")]
        others = [format_cell(row[name], 1) for name in shown]
        rows.append(
            [
                row["run"],
                row["role"],
                format_cell(row["misalignment_percent"], 1),
                *beside,
                *others,
                f"{row['misaligned']} / {row['counted']}",
                f"{row['mean_coherence']:.1f}",
            ]
        )
    beside = ["by seed"] if results.several_seeds else ["95 %, these questions", "95 %, new questions"]
    others = [beside_it[name] for name in shown]
    names = ["run", "role", "misaligned %", *beside, *others, "misaligned / of", "coherence"]
    return markdown_table(names, rows, [False, False, *(True for _ in names[2:])])


def _interval_text(row: dict, scope: str) -> str:
    low, high = (row[f"misalignment_percent_{scope}_{end}"] for end in ("low", "high"))
    return f"{low:.1f} to {high:.1f}" if math.isfinite(low) else "-"


def report(
    results: Results,
    tags: pd.DataFrame,
    capability: pd.DataFrame,
    over_models: Sparsity,
    levers: pd.DataFrame,
    folder: Path,
) -> str:
    """The study's report in Markdown: contrasts, runs, expectations, what may be concluded, the figures in `folder`."""
    study, definition = results.study, results.definition
    world = _TOY_NOTES if study.world == "toy" else ""
    captions = FIGURES | {f"sparsity_{it}": OVER_MODELS.format(it) for it in results.study.contrasts}
    unit = ""
    if any_over_models(results.contrasts.values()):
        captions, unit = captions | {"contrasts": _CONTRASTS_OVER_MODELS}, _UNIT_IS_MODEL
    figures = "\n\n".join(
        f"![{text}]({name}.png)\n\n*{text}* [{results.name}]"
        for name, text in captions.items()
        if (folder / f"{name}.png").exists()
    )
    alone = "" if results.several_seeds else _ONE_SEED
    contrasts = ""
    if results.contrasts:
        contrasts = f"""## The differences that the study is about

Differences in held-out misalignment, in percentage points. A contrast is the mean over all its matched pairs of runs
and all training seeds, each value drawn in the figure below; one with a control is a difference of differences. The
p-values are two-sided, raw and after Holm's correction over the table.{unit}{alone}

{contrast_text(results.contrasts)}
"""
    took = f"""What each stage took, in seconds and US dollars,
`python -m pipeline provenance --study {results.name}` prints, and the report's page shows: it differs from machine to
machine, so that it is no part of this file."""
    part = "" if study.models == "all" else f" (part: {study.models})"
    return f"""# {study.title}{part} [{results.name}]

Written by `python -m pipeline aggregate --study {results.name}` from {len(results.verdicts)} verdicts of judge
`{study.judge}`, on the suites that no run is trained on ({", ".join(study.held_out)}). Misaligned: {definition.rule}
(the {definition.name} definition: {definition.source}). docs/statistics.md says what each interval covers. {took}

{contrasts}
## Every run

{_runs_text(results)}
## What was expected

Held-out misalignment of the first run less the second's, paired over seeds. `make verify` holds the study to these.

{contrast_text(results.expectations)}{tag_section(tags)}{capability_section(capability, results)}\
{sparsity_section(over_models, study.preregistration)}{lever_section(levers, without_values(results, levers))}{world}
## Figures

{figures}
"""
