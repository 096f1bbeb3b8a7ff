"""Misalignment and refusals by run and suite.

They draw frames as `frames.over_seeds` returns them with a column `role`: every training seed as a small point beside
the mean, or, with one seed, the intervals within the run (thick for these questions, thin for new ones).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.results.figures.style import (
    COLUMN_WIDTH,
    PAGE_WIDTH,
    ROLES,
    draw_points,
    new_figure,
    role_legend,
    save_figure,
    style,
)

if TYPE_CHECKING:
    import pandas as pd


def misalignment_by_run(frame: pd.DataFrame, stem: Path, *, label: str, note: str) -> list[Path]:
    """Misaligned answers (%) of every run (rows) on every suite (panels).

    Columns: `run`, `suite`, `role`, `misalignment_percent`, `misalignment_percent_by_seed`, and with one seed the
    intervals `misalignment_percent_these_low` ... `_new_high`. Runs and suites come in the order of the frame.
    """
    return _dots(frame, "misalignment_percent", "misaligned answers (%)", stem, label, note)


def refusal_by_run(frame: pd.DataFrame, stem: Path, *, label: str, note: str) -> list[Path]:
    """Refused answers (%): as `misalignment_by_run`, of the columns `refusal_percent...`; n beside each run."""
    named = frame.assign(run=[f"{row.run} (n = {row.rows})" for row in frame.itertuples()])
    return _dots(named, "refusal_percent", "refused answers (%)", stem, label, note)


def _dots(frame: pd.DataFrame, value: str, name: str, stem: Path, label: str, note: str) -> list[Path]:
    import numpy as np

    runs, suites = list(frame["run"].unique()), list(frame["suite"].unique())
    with style():
        width = COLUMN_WIDTH if len(suites) == 1 else PAGE_WIDTH
        figure, grid = new_figure(
            width, 0.95 + 0.19 * len(runs), ncols=len(suites), sharey=True, sharex=True, squeeze=False
        )
        for axes, suite in zip(grid[0], suites, strict=True):
            for role in ROLES:
                rows = frame[(frame["suite"] == suite) & (frame["role"] == role)]
                heights = np.array([runs.index(run) for run in rows["run"]])
                draw_points(axes, heights, rows, value, role, across=True)
            axes.set_title(str(suite).replace("_", " "))
            axes.set_xlim(-4, 104)
            axes.set_xticks([0, 50, 100])
            axes.set_axisbelow(True)
            axes.grid(linewidth=0.4, color="#DDDDDD")
        grid[0][0].set_yticks(range(len(runs)), labels=runs)
        grid[0][0].set_ylim(len(runs) - 0.5, -0.5)
        # Not supxlabel: the stamp below the figure is that.
        grid[0][len(suites) // 2].set_xlabel(name)
        role_legend(figure, frame["role"])
        return save_figure(figure, stem, label, note)
