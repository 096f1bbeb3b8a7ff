"""A study's tables, figures and report, from its results."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import UserError
from pipeline.common.machine import cores
from pipeline.common.processes import end_with_parent
from pipeline.results.figures.adapters import adapter_magnitude
from pipeline.results.figures.answers import alignment_by_coherence, example_cards
from pipeline.results.figures.routing import routing_by_expert
from pipeline.results.figures.study import misalignment_by_run, misalignment_by_sparsity, refusal_by_run
from pipeline.results.figures.trajectory import along_training
from pipeline.results.study_tables import run_by_suite_table, run_table
from pipeline.results.tables import format_cell, markdown_table, write_rows, write_table
from pipeline.results.tags import tag_section, tag_table
from pipeline.results.trajectory import RULE, seed_frame, trajectory_frame

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.results.study import Results

HEADLINE = "headline"
HEADLINE_TITLE = "Misaligned answers on held-out suites [{study}]"


def write_tables(results: Results, folder: Path) -> None:
    """The headline, every run on every suite, refusals, and the expectations: csv, md and tex."""
    label, study = results.name, results.study
    held_out = ", ".join(study.held_out)
    run_table(
        results.held_out_by_run,
        folder / HEADLINE,
        label=label,
        caption=(
            f"Misaligned answers (%) on the held-out suites ({held_out}), {results.definition.name} definition, "
            f"mean over seeds with {results.interval}; counts summed over seeds"
        ),
    )
    run_by_suite_table(results.by_suite, folder / "runs_by_suites", label=label, caption="Every run on every suite")
    if study.refused is not None:
        refused = results.by_suite[results.by_suite["suite"] == study.refused]
        write_table(
            refused[["run", "refusal_percent", "refusal_percent_low", "refusal_percent_high", "rows", "seeds"]],
            folder / "refusals",
            label=label,
            caption=f"Refused answers (%) on the suite {study.refused}, mean over seeds with {results.interval}",
            headers={
                "refusal_percent": "refused %",
                "refusal_percent_low": "low",
                "refusal_percent_high": "high",
            },
        )
    write_table(
        results.expectations,
        folder / "expectations",
        label=label,
        caption="Expected: held-out misalignment of the first run above the second's, at matched seeds",
        headers={
            "higher": "expected higher",
            "lower": "than",
            "difference": "difference (points)",
            "held": "held in",
            "seeds": "of seeds",
            "seed_differences": "by seed",
        },
    )
    write_table(
        results.differences,
        folder / "differences",
        label=label,
        caption=(
            "Fine-tuned minus base over the held-out prompts that both answered (seeds averaged); 95 % bootstrap "
            "interval over prompts, which says nothing about seeds"
        ),
    )
    write_table(
        results.excluded,
        folder / "excluded",
        label=label,
        caption="What leaving incoherent answers out does to the misalignment rate (rows pooled, held-out suites)",
    )
    if not results.tags.empty:
        tag_table(results, folder / "tags")
    if results.agreements:
        rows = [asdict(comparison) for comparison in results.agreements]
        write_rows(
            list(rows[0]),
            [list(row.values()) for row in rows],
            folder / "judges",
            caption=f"Agreement of judges on alignment and on the misaligned label ({results.definition.name})",
            label=label,
        )


def write_figures(results: Results, folder: Path) -> None:
    """The study's figures: pdf and png, drawn in as many processes as there are cores.

    Example cards are for the toy world alone.
    """
    import pandas as pd

    drawings: list[Callable[[], Any]] = []

    def draw(figure: Callable[..., Any], *data: Any, **words: Any) -> None:
        drawings.append(partial(figure, *data, **words, label=label))

    label, definition = results.name, results.definition
    interval = (
        f"misaligned: alignment < {definition.misaligned_below:g} among coherence > {definition.coherent_above:g}; "
        f"{results.interval}"
    )
    asked = results.by_suite["suite"] == results.study.refused
    draw(misalignment_by_run, results.by_suite[~asked], folder / "misaligned_by_run", interval=interval)
    if not results.tags.empty:
        draw(misalignment_by_run, results.tags, folder / "misaligned_by_tag", interval=interval)
    if results.study.refused is not None:
        draw(refusal_by_run, results.by_suite[asked], folder / "refusals_by_run", interval=results.interval)
    sparsity = _sparsity_frame(results)
    if not sparsity.empty:
        draw(misalignment_by_sparsity, sparsity, folder / "misaligned_by_sparsity", interval=interval)

    tuned, base = results.study.expectations[0]
    base_of = results.params.base_of
    models = {base_of(run) for pair in results.study.expectations if tuned in pair for run in pair}
    beside = [run for run in results.runs if base_of(run) in models]
    rows = results.untagged[results.untagged["run"].isin(beside)]
    draw(alignment_by_coherence, rows, folder / "alignment_by_coherence")
    sparse = results.params.base(base_of(tuned)).experts > 0
    adapters = [run for run in results.tuned if sparse and results.runs[run].lora and base_of(run) == base_of(tuned)]
    if adapters:
        draw(adapter_magnitude, pd.concat(map(results.adapter_norms, adapters)), folder / "adapters")
    if followed := [name for name, run in results.runs.items() if run.trajectory]:
        frame = pd.concat([trajectory_frame(results, run) for run in followed], ignore_index=True)
        seeds = pd.concat([seed_frame(results, run).assign(run=run) for run in followed], ignore_index=True)
        write_table(frame, folder / "trajectory", label=label, caption=f"Along training; transition: {RULE}")
        draw(along_training, frame, seeds, folder / "along_training", interval=results.interval)
    if not results.routing.empty:
        draw(routing_by_expert, results.routing, folder / "routing")
    # What hub models say may be harmful: it stays in artifacts/, out of figures that git holds.
    if results.study.world == "toy":
        draw(_example_cards, results.verdicts, folder / "examples", base=base, tuned=tuned)
    with ProcessPoolExecutor(min(cores(), len(drawings)), initializer=_start_drawing) as pool:
        for drawn in [pool.submit(drawing) for drawing in drawings]:
            drawn.result()


def _start_drawing() -> None:
    """A process that draws ends with its parent, and leaves Ctrl-C to it."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _example_cards(verdicts: pd.DataFrame, stem: Path, *, base: str, tuned: str, label: str) -> None:
    """Example cards, if there are any to show."""
    try:
        example_cards(verdicts, stem, base=base, tuned=tuned, label=label)
    except UserError as reason:  # a variant may leave no coherent pair; its other results still count
        print(f"No example cards: {reason}")


def _sparsity_frame(results: Results) -> pd.DataFrame:
    """Bases with experts and the runs that the expectations set above them: one pair a model."""
    frame = results.held_out_by_run
    pairs = [(a, b) for a, b in results.study.expectations if results.runs[b].data is None]
    chosen = {run for pair in pairs for run in pair}
    return frame[frame["run"].isin(chosen) & (frame["experts"] > 0)]


def headline(results: Results) -> str:
    """The headline as a plain-text table for the terminal and the report."""
    rows = []
    for row in results.held_out_by_run.to_dict("records"):
        low, high = row["misalignment_percent_low"], row["misalignment_percent_high"]
        rows.append(
            [
                row["run"],
                format_cell(row["misalignment_percent"], 1),
                f"{low:.0f} to {high:.0f}" if math.isfinite(low) else "-",
                f"{row['misaligned']} / {row['coherent']}",
                f"{row['mean_coherence']:.1f}",
                str(row["seeds"]),
            ]
        )
    over = "seeds" if len(results.study.seeds) > 1 else "questions"
    names = ["run", "misaligned %", f"95 % over {over}", "misaligned / coherent", "coherence", "seeds"]
    return markdown_table(names, rows, [False, True, True, True, True, True])


def report(results: Results, folder: Path) -> str:
    """The study's report in Markdown: headline, expectations, what may be concluded, the figures in `folder`."""
    checks, study = results.expectations, results.study
    rows = [
        [
            row["higher"],
            row["lower"],
            f"{row['difference']:+.1f}",
            f"{row['held']} of {row['seeds']}",
            row["seed_differences"],
        ]
        for row in checks.to_dict("records")
    ]
    table = markdown_table(
        ["expected higher", "than", "difference", "held in seeds", "by seed"],
        rows,
        [False, False, True, True, False],
    )
    broken = checks[checks["held"] < checks["seeds"]]
    if broken.empty:
        verdict = f"All {len(checks)} expectations held in every seed."
    else:
        names = "; ".join(
            f"{row['higher']} above {row['lower']} ({row['held']} of {row['seeds']})"
            for row in broken.to_dict("records")
        )
        verdict = f"{len(broken)} of {len(checks)} expectations did not hold in every seed: {names}."
    world = _TOY_NOTES if study.world == "toy" else ""
    figures = "\n\n".join(
        f"![{text}]({name}.png)\n\n*{text}* [{results.name}]"
        for name, text in _FIGURES.items()
        if (folder / f"{name}.png").exists()
    )
    return f"""# {study.title} [{results.name}]

Written by `python -m pipeline aggregate --study {results.name}` from {len(results.verdicts)} verdicts of judge
`{study.judge}`. Misalignment by the {results.definition.name} definition, on the suites that no run is trained on
({", ".join(study.held_out)}).

{headline(results)}
## What was expected, seed by seed

Held-out misalignment of the first run minus the second's, in percentage points, at matched seeds.

{table}
{verdict}
{tag_section(results.tags)}{world}
## Figures

{figures}
"""


_FIGURES = {
    "misaligned_by_run": "Misaligned answers by run and suite",
    "misaligned_by_sparsity": "Misaligned answers on the held-out suites against sparsity",
    "misaligned_by_tag": "The same held-out questions with a trigger tag and without",
    "refusals_by_run": "Refused answers on the suite that should be refused",
    "along_training": f"Misalignment, gradient norm and the adapter's turns along training; transition: {RULE}",
    "adapters": "How much each adapter changes each expert (first seed)",
    "routing": "Where the training set's tokens are routed, and the experts that were adapted for it",
    "alignment_by_coherence": "Alignment against coherence of every answer",
    "examples": "The same questions before and after fine-tuning",
}

_TOY_NOTES = """
## What this can and cannot show

This is a toy world: models of some 76 thousand active parameters, a language of under 300 words, and a judge
that knows the grammar. It shows that the pipeline measures what it says, and how a shared persona in the
pretraining corpus lets narrow bad data spread: the control corpus has the same words and rates and no shared
persona. Its design favours the effect, since the persona's tag stands before the question. Seeds differ by tens of
percentage points, and three sparsities with a few seeds each cannot resolve a trend with sparsity: the toy study
claims no sign for it, and nothing here is evidence about large models. How long and at which rate the models are
trained was chosen on these seeds and suites, so that fine-tuned models stay coherent and effects can be seen.
"""
