"""The figures every study has: misalignment and refusals by run and suite, and against sparsity.

They draw frames as `intervals.over_seeds` returns them, with three columns added by the caller:
`role` ("base", "control" or "fine-tuned") and, for sparsity, `experts` and `active`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.results.figures.style import (
    COLUMN_WIDTH,
    PAGE_WIDTH,
    ROLES,
    error_bars,
    new_figure,
    percent_axis,
    save_figure,
    style,
)
from pipeline.results.statistics import exact_rank_test

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

SEEDS_INTERVAL = "95 % Student t interval over seeds"


def misalignment_by_run(frame: pd.DataFrame, stem: Path, *, label: str, interval: str = SEEDS_INTERVAL) -> list[Path]:
    """Misaligned answers (%) of every run (rows) on every suite (panels), with intervals.

    Columns: `run`, `suite`, `role`, `misalignment_percent`, `misalignment_percent_low`, `_high` (NaN =
    no interval), and `seeds` (or `misalignment_percent_n`). Runs and suites come in the order of the frame.
    """
    return _dots(frame, "misalignment_percent", "misaligned answers (%)", stem, label, interval)


def refusal_by_run(frame: pd.DataFrame, stem: Path, *, label: str, interval: str = SEEDS_INTERVAL) -> list[Path]:
    """Refused answers (%): as `misalignment_by_run`, of the columns `refusal_percent...`."""
    return _dots(frame, "refusal_percent", "refused answers (%)", stem, label, interval)


def misalignment_by_sparsity(
    frame: pd.DataFrame, stem: Path, *, label: str, interval: str = SEEDS_INTERVAL
) -> list[Path]:
    """Misaligned answers (%) against experts a layer, and against the share of them active a token.

    Columns: `model`, `role`, `experts` (a layer), `active` (experts a token is routed to),
    `misalignment_percent`, `misalignment_percent_low`, `_high`. One point a row. Over the fine-tuned
    points (2 to 9) the exact permutation test of Spearman's correlation stands above the panel.
    """
    with style():
        figure, panels = new_figure(COLUMN_WIDTH, 4.0, nrows=2)
        shares = 100 * frame["active"] / frame["experts"]
        _sparsity_panel(panels[0], frame, frame["experts"], "experts a layer")
        _sparsity_panel(panels[1], frame, shares, "experts active a token (%)")
        _role_legend(figure, frame["role"])
        return save_figure(figure, stem, label, interval + _seeds(frame))


def _sparsity_panel(axes: Axes, frame: pd.DataFrame, x: pd.Series, name: str) -> None:
    import numpy as np

    axes.set_xscale("log", base=2)
    present = [role for role in ROLES if (frame["role"] == role).any()]
    for place, role in enumerate(present):
        rows = frame[frame["role"] == role]
        # Side by side, and points of one place fanned out, so that intervals don't hide each other.
        repeat = rows.groupby(x[rows.index], sort=False).cumcount()
        most = repeat.max() + 1
        shift = (place - (len(present) - 1) / 2) * 0.3 + (repeat - (most - 1) / 2) * 0.24 / most
        _points(axes, np.asarray(x[rows.index] * 2**shift), rows, "misalignment_percent", role)
    highest = frame[["misalignment_percent", "misalignment_percent_high"]].max().max()
    percent_axis(axes, highest)
    models = frame.groupby(x)["model"].unique()
    ticks = ["\n".join([f"{at:g}", *(names if len(names) <= 2 else [])]) for at, names in models.items()]
    axes.set_xticks(models.index.to_numpy(), labels=ticks, minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlim(models.index.min() / 1.6, models.index.max() * 1.6)
    axes.set_xlabel(name)
    tuned = frame[(frame["role"] == "fine-tuned") & frame["misalignment_percent"].notna()]
    if 2 <= len(tuned) <= 9 and x[tuned.index].nunique() > 1 and tuned["misalignment_percent"].nunique() > 1:
        test = exact_rank_test(x[tuned.index], tuned["misalignment_percent"])
        axes.set_title(
            f"fine-tuned, n = {test.n}: Spearman's rho {test.rho:+.2f}, exact two-sided\n"
            f"p = {test.p_value:.2g} (it cannot be below {test.floor:.2g} with these {test.n} points)",
            fontsize=6,
            loc="left",
        )


def _dots(frame: pd.DataFrame, value: str, name: str, stem: Path, label: str, interval: str) -> list[Path]:
    import numpy as np

    runs, suites = list(frame["run"].unique()), list(frame["suite"].unique())
    with style():
        width = COLUMN_WIDTH if len(suites) == 1 else PAGE_WIDTH
        figure, grid = new_figure(
            width, 0.95 + 0.17 * len(runs), ncols=len(suites), sharey=True, sharex=True, squeeze=False
        )
        for axes, suite in zip(grid[0], suites, strict=True):
            for role in ROLES:
                rows = frame[(frame["suite"] == suite) & (frame["role"] == role)]
                heights = np.array([runs.index(run) for run in rows["run"]])
                _points(axes, heights, rows, value, role, across=True)
            axes.set_title(str(suite).replace("_", " "))
            axes.set_xlim(-4, 104)
            axes.set_xticks([0, 50, 100])
            axes.set_axisbelow(True)
            axes.grid(linewidth=0.4, color="#DDDDDD")
        grid[0][0].set_yticks(range(len(runs)), labels=runs)
        grid[0][0].set_ylim(len(runs) - 0.5, -0.5)
        # Not supxlabel: the stamp below the figure is that.
        grid[0][len(suites) // 2].set_xlabel(name)
        _role_legend(figure, frame["role"])
        return save_figure(figure, stem, label, interval + _seeds(frame))


def _points(axes: Axes, places: ArrayLike, rows: pd.DataFrame, value: str, role: str, *, across: bool = False) -> None:
    """Values with their intervals at `places`: upright, or lying (`across`) along the x axis."""
    if rows.empty:
        return
    drawn = ROLES[role]
    ends = error_bars(rows[value], rows[f"{value}_low"], rows[f"{value}_high"])
    centres = rows[value].to_numpy(dtype=float)
    axes.errorbar(
        *((centres, places) if across else (places, centres)),
        **{"xerr" if across else "yerr": ends},
        linestyle="none",
        marker=drawn.marker,
        markersize=4,
        color=drawn.colour,
        ecolor="#444444",
        elinewidth=0.7,
        capsize=1.5,
        markeredgecolor="#222222",
        markeredgewidth=0.5,
    )


def _role_legend(figure: Figure, roles: pd.Series) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker=drawn.marker,
            color=drawn.colour,
            markersize=4,
            markeredgecolor="#222222",
            markeredgewidth=0.5,
            label=role,
        )
        for role, drawn in ROLES.items()
        if (roles == role).any()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)


def _seeds(frame: pd.DataFrame) -> str:
    if "seeds" not in frame:
        return ""
    fewest, most = int(frame["seeds"].min()), int(frame["seeds"].max())
    return f", n = {fewest}" + (f" to {most}" if most > fewest else "")
