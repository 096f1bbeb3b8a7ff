"""Along training: misalignment, gradient norm, and the rank-1 adapter's local cosine similarity, one below another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.results.figures.style import COLUMN_WIDTH, PAGE_WIDTH, ROLES, error_bars, new_figure, save_figure, style
from pipeline.results.trajectory import RULE, transition

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PANELS = {
    "misalignment_percent": "misaligned (%)",
    "gradient_norm": "gradient norm",
    "local_cosine": "local cosine\nsimilarity of B",
}


def along_training(frame: pd.DataFrame, seeds: pd.DataFrame, stem: Path, *, label: str, interval: str) -> list[Path]:
    """A column a run, a panel a value, over training steps; the step at which B turns most is marked.

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
            title = str(run) if turned is None else f"{run}\nB turns most at step {turned}"
            grid[0, column].set_title(title, loc="left")
            grid[-1, column].set_xlabel("training step")
        for axes, name in zip(grid[:, 0], PANELS.values(), strict=True):
            axes.set_ylabel(name)
        spread = f"markers: {interval}; thin lines: seeds; thick: their mean"
        note = (
            f"dashed: {RULE}; there always is one, and it means something where the other panels change "
            f"with it. The cosine is -1 where B goes straight on (Turner et al. 2025, section 4.1). {spread}"
        )
        return save_figure(figure, stem, label, note)


def _measured(axes: Axes, rows: pd.DataFrame) -> None:
    value = "misalignment_percent"
    axes.errorbar(
        rows["step"],
        rows[value],
        yerr=error_bars(rows[value], rows[f"{value}_low"], rows[f"{value}_high"]),
        marker=ROLES["fine-tuned"].marker,
        color=ROLES["fine-tuned"].colour,
        ecolor="#444444",
        elinewidth=0.7,
        capsize=1.5,
        markersize=3,
    )
    axes.set_ylim(bottom=0)


def _logged(axes: Axes, logged: pd.DataFrame, value: str) -> None:
    known = logged[logged[value].notna()]
    for _, rows in known.groupby("seed"):
        axes.plot(rows["step"], rows[value], color="#B8B8B8", linewidth=0.6)
    mean = known.groupby("step")[value].mean()
    axes.plot(mean.index, mean, color="#1B3A5C", marker="o" if value == "local_cosine" else "", markersize=2.5)
    if value == "local_cosine":
        axes.set_ylim(-1.08, 1.08)
