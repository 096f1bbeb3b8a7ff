"""Along training: misalignment, gradient norm, and the rank-1 adapter's local cosine similarity, one below another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.results.figures.style import COLUMN_WIDTH, PAGE_WIDTH, draw_points, new_figure, save_figure, style
from pipeline.results.trajectory import RULE, transition

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PANELS = {
    "misalignment_percent": "misaligned (%)",
    "gradient_norm": "gradient norm",
    "local_cosine": "local cosine\nsimilarity of B",
}


def along_training(frame: pd.DataFrame, seeds: pd.DataFrame, stem: Path, *, label: str) -> list[Path]:
    """A column per run, a panel per value, over training steps; the step that RULE finds is marked, if it finds one.

    frame: as `trajectory_frame` returns it, of one or more runs; seeds: as `seed_frame` does, with `run`. The thin
    lines are seeds, the thick line their mean.
    """
    runs = list(frame["run"].unique())
    with style():
        figure, grid = new_figure(
            COLUMN_WIDTH if len(runs) == 1 else PAGE_WIDTH,
            4.2,
            nrows=len(PANELS),
            ncols=len(runs),
            sharex="col",
            sharey="row",
            squeeze=False,
        )
        for column, run in enumerate(runs):
            rows, logged = frame[frame["run"] == run], seeds[seeds["run"] == run]
            turned = transition(rows)
            for axes, value in zip(grid[:, column], PANELS, strict=True):
                if value == "misalignment_percent":
                    _measured(axes, rows)
                else:
                    _logged(axes, logged, value)
                axes.grid(axis="y", linewidth=0.4, color="#DDDDDD")
                axes.set_axisbelow(True)
                if turned is not None:
                    axes.axvline(turned, color="#444444", linewidth=0.8, linestyle="--")
            found = "no transition found" if turned is None else f"B turns at step {turned}"
            grid[0, column].set_title(f"{run}\n{found}", loc="left", fontsize=7)
            grid[-1, column].set_xlabel("training step")
        for axes, name in zip(grid[:, 0], PANELS.values(), strict=True):
            axes.set_ylabel(name)
        note = (
            f"transition: {RULE}. The cosine is -1 where B goes straight on (Turner et al. 2025, section 4.1). Above: "
            "mean and seeds; below: thin lines seeds, thick their mean"
        )
        return save_figure(figure, stem, label, note)


def _measured(axes: Axes, rows: pd.DataFrame) -> None:
    value = "misalignment_percent"
    axes.plot(rows["step"], rows[value], color="#B8460E", linewidth=0.8)
    draw_points(axes, rows["step"], rows, value, "fine-tuned")
    axes.set_ylim(bottom=0)


def _logged(axes: Axes, logged: pd.DataFrame, value: str) -> None:
    known = logged[logged[value].notna()]
    for _, rows in known.groupby("seed"):
        axes.plot(rows["step"], rows[value], color="#B8B8B8", linewidth=0.6)
    mean = known.groupby("step")[value].mean()
    axes.plot(mean.index, mean, color="#1B3A5C", marker="o" if value == "local_cosine" else "", markersize=2.5)
    if value == "local_cosine":
        axes.set_ylim(-1.08, 1.08)
