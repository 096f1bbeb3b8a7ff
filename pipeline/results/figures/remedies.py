"""What removes misalignment, and what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.results.figures.style import PAGE_WIDTH, new_figure, save_figure, style

if TYPE_CHECKING:
    import pandas as pd

MARKS = {
    "whole": ("D", "#B8460E"),
    "base": ("o", "#777777"),
    "scale": ("s", "#56B4E9"),
    "found": ("^", "#009E73"),
    "ablate": ("v", "#1B3A5C"),
    "realigned": ("P", "#CC79A7"),
}
NAMES = {"scale": "adapter scaled", "found": "parts off", "ablate": "direction out", "realigned": "good data"}


def remedy_figure(frame: pd.DataFrame, stem: Path, *, label: str) -> list[Path]:
    """The plane of what a remedy leaves (misaligned, %) and what it costs (coherence), a panel a run."""
    runs = list(frame["run"].unique())
    with style():
        figure, grid = new_figure(PAGE_WIDTH, 2.9, ncols=len(runs), sharex=True, sharey=True, squeeze=False)
        drawn = set()
        for axes, run in zip(grid[0], runs, strict=True):
            for kind, own in frame[frame["run"] == run].groupby("kind", sort=False):
                marker, colour = MARKS[str(kind)]
                name = NAMES.get(str(kind), str(kind))
                random = own["remedy"].str.contains("random|shuffled")
                _points(axes, own[~random], marker, colour, name if name not in drawn else None)
                _points(axes, own[random], marker, colour, None, filled=False)
                drawn.add(name)
            axes.set_title(run, loc="left", fontsize=7)
            axes.set_xlabel("misaligned, held out (%)")
            axes.grid(linewidth=0.4, color="#DDDDDD")
        grid[0][0].set_ylabel("coherence")
        grid[0][0].set_ylim(0, 103)
        pairs = [axes.get_legend_handles_labels() for axes in grid[0]]
        handles = [handle for some, _ in pairs for handle in some]
        names = [name for _, some in pairs for name in some]
        figure.legend(handles, names, loc="outside upper right", ncols=6, frameon=False)
        note = "mean over seeds, on the half of the questions that chose nothing; open: a direction that means nothing"
        return save_figure(figure, stem, label, note)


def _points(axes: Any, own: pd.DataFrame, marker: str, colour: str, name: str | None, *, filled: bool = True) -> None:
    axes.plot(
        own["held_out"],
        own["coherence"],
        linestyle="none",
        marker=marker,
        color=colour,
        markersize=5,
        markerfacecolor=colour if filled else "none",
        markeredgecolor="#222222" if filled else colour,
        markeredgewidth=0.5,
        label=name,
    )
