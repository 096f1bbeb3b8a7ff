"""What a direction does to the base, by its strength, beside random ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.results.figures.style import PAGE_WIDTH, SERIES, new_figure, save_figure, style

if TYPE_CHECKING:
    import pandas as pd

# Directions that mean nothing, by what they are made of.
BANDS: dict[str, dict[str, Any]] = {
    "random": {"color": "#D5D5D5", "linewidth": 0},
    "shuffled": {"facecolor": "none", "edgecolor": "#777777", "hatch": "////", "linewidth": 0.5},
}


def dose_figure(frame: pd.DataFrame, stem: Path, *, label: str) -> list[Path]:
    """Misalignment, and coherent answers, of the base with a direction added, by strength, beside BANDS."""
    runs = list(frame["run"].unique())
    with style():
        figure, grid = new_figure(PAGE_WIDTH, 3.6, nrows=2, ncols=len(runs), sharex=True, sharey="row", squeeze=False)
        for axes, (value, name) in zip(
            grid, (("misalignment_percent", "misaligned (%)"), ("coherent_percent", "coherent (%)")), strict=True
        ):
            axes[0].set_ylabel(name)
            for one, run in zip(axes, runs, strict=True):
                _doses(one, frame[frame["run"] == run], value)
        for one, run in zip(grid[0], runs, strict=True):
            one.set_title(run, loc="left", fontsize=7)
        for one in grid[1]:
            one.set_xlabel("strength (times its length)")
            one.set_ylim(-4, 104)
        handles, names = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper right", ncols=4, frameon=False)
        note = "lines: mean over seeds, points: seeds; bands: directions of equal length, each a mean over seeds"
        return save_figure(figure, stem, label, note)


def _doses(axes: Any, frame: pd.DataFrame, value: str) -> None:
    for what, look in BANDS.items():
        made = frame[frame["what"].str.startswith(what)]
        chance = made.groupby(["what", "strength"])[value].mean().groupby("strength")
        if chance.ngroups:
            low, high = chance.min(), chance.max()
            axes.fill_between(low.index, low, high, label=what, **look)
    for drawn, name in zip(SERIES, ("shift", "contrast"), strict=False):
        own = frame[frame["what"] == name]
        if own.empty:
            continue
        means = own.groupby("strength")[value].mean()
        axes.plot(means.index, means, color=drawn.colour, marker=drawn.marker, markersize=4, label=name)
        axes.plot(
            own["strength"],
            own[value],
            linestyle="none",
            marker="o",
            markersize=2,
            markerfacecolor="none",
            color=drawn.colour,
        )
    axes.grid(axis="y", linewidth=0.4, color="#DDDDDD")
