"""All figures of a study, drawn side by side."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import UserError
from pipeline.common.machine import cores
from pipeline.common.processes import end_with_parent
from pipeline.results.definitions import PUBLISHED, STANDARD
from pipeline.results.figures.adapters import adapter_magnitude
from pipeline.results.figures.contrasts import contrast_figure
from pipeline.results.figures.density import alignment_by_coherence
from pipeline.results.figures.examples import example_cards
from pipeline.results.figures.levers import lever_figure
from pipeline.results.figures.routing import routing_by_expert
from pipeline.results.figures.runs import misalignment_by_run, refusal_by_run
from pipeline.results.figures.sparsity import misalignment_by_sparsity, misalignment_over_models
from pipeline.results.figures.trajectory import along_training
from pipeline.results.levers import ACTIVE
from pipeline.results.sparsity import Sparsity, published_points
from pipeline.results.tables import write_table
from pipeline.results.trajectory import RULE, seed_frame, trajectory_frame

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.results.study import Results


_OVER_MODELS = (
    "a model's mean over seeds (open: each), 95 % intervals with the spread over seeds pooled over models, the line of "
    "the meta-regression"
)
_WITHIN = (
    "95 % intervals with the spread over seeds pooled over levels; each less the same model at that level, untrained"
)
_LINES = "; dashed: one model, the number of its active experts varied"
_GREY = "; grey: the paper's headline, fine-tuned less base by its own definition, in no test"


def write_figures(
    results: Results,
    tags: pd.DataFrame,
    sparsity: Sparsity,
    levers: pd.DataFrame,
    folder: Path,
    more: Sequence[Callable[[], Any]] = (),
) -> None:
    """The study's figures, and `more` drawings: pdf and png, drawn in as many processes as there are cores.

    Example cards are for the toy world alone: what hub models say may be harmful, and stays out of figures in git.
    """
    import pandas as pd

    drawings: list[Callable[[], Any]] = [*more]

    def draw(figure: Callable[..., Any], *data: Any, **words: Any) -> None:
        drawings.append(partial(figure, *data, **words, label=results.name))

    definition = results.definition
    note = f"misaligned: {definition.rule}; {results.spread}"
    refused = results.by_suite["suite"] == results.study.refused
    if results.contrasts:
        draw(contrast_figure, results.contrasts, folder / "contrasts")
    draw(misalignment_by_run, results.by_suite[~refused], folder / "misaligned_by_run", note=note)
    if not tags.empty:
        draw(misalignment_by_run, tags, folder / "misaligned_by_tag", note=note)
    if results.study.refused is not None:
        draw(refusal_by_run, results.by_suite[refused], folder / "refusals_by_run", note=results.spread)
    for contrast, models in sparsity.models.groupby("contrast", sort=False) if not sparsity.models.empty else ():
        comparable = results.study.world == "hub" and results.against_base(str(contrast))
        published, grey = (published_points(), _GREY) if comparable else (models.iloc[:0], "")
        tests = sparsity.tests[sparsity.tests["contrast"] == contrast]
        # Levers are of the first contrast's ranks.
        shown = comparable and contrast == sparsity.first and not levers.empty
        within = levers[levers["measure"] == ACTIVE] if shown else levers.iloc[:0]
        lines = "" if within.empty else _LINES
        words = {"note": f"{contrast}; {_OVER_MODELS}{lines}{grey}; misaligned: {definition.rule}"}
        draw(misalignment_over_models, models, tests, published, within, folder / f"sparsity_{contrast}", **words)
    if not levers.empty:
        words = {"note": f"mean over seeds (open: each), {_WITHIN}; misaligned: {definition.rule}"}
        draw(lever_figure, levers, folder / "levers", **words)
    of_few = sparsity_frame(results)
    if sparsity.models.empty and not of_few.empty:
        sizes = "; models of more experts have more parameters in all" if results.study.world == "toy" else ""
        draw(misalignment_by_sparsity, of_few, folder / "misaligned_by_sparsity", note=note + sizes)
    both = (definition, PUBLISHED if definition is STANDARD else STANDARD)
    draw(alignment_by_coherence, results.untagged, folder / "alignment_by_coherence", definitions=both)

    tuned, base = results.study.expectations[0]
    of_tuned = results.params.base_of(tuned)
    adapted = [run for run in results.tuned if results.runs[run].lora and results.params.base_of(run) == of_tuned]
    if adapted and results.params.base(of_tuned).experts:
        draw(adapter_magnitude, pd.concat(map(results.adapter_norms, adapted)), folder / "adapters")
    if followed := [name for name, run in results.runs.items() if run.trajectory]:
        frame = pd.concat([trajectory_frame(results, run) for run in followed], ignore_index=True)
        seeds = pd.concat([seed_frame(results, run).assign(run=run) for run in followed], ignore_index=True)
        shown = frame.drop(columns=[name for name in map(str, frame) if name.endswith("_by_seed")])
        write_table(
            shown, folder / "trajectory", label=results.name, caption=f"Along training; transition: {RULE}", decimals=2
        )
        draw(along_training, frame, seeds, folder / "along_training")
    if not results.routing.empty:
        draw(routing_by_expert, results.routing, folder / "routing")
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


def sparsity_frame(results: Results) -> pd.DataFrame:
    """Bases with experts, and the runs that the expectations set above them, routed as the base is made to be."""
    frame = results.held_out_by_run
    pairs = [pair for pair in results.study.expectations if results.runs[pair[1]].data is None]
    chosen = {run for pair in pairs for run in pair if results.runs[run].active is None}
    return frame[frame["run"].isin(chosen) & (frame["experts"] > 0)]
