"""How far fine-tuning moves the router's choices, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.results.figures.style import PAGE_WIDTH, SERIES, new_figure, save_figure, style

if TYPE_CHECKING:
    import pandas as pd


def routing_figure(frame: pd.DataFrame, stem: Path, *, label: str) -> list[Path]:
    """Divergence of the router's choices by layer, a panel a run, a line a kind of prompt; grey: what chance gives."""
    runs = list(frame["run"].unique())
    with style():
        figure, grid = new_figure(PAGE_WIDTH, 2.5, ncols=len(runs), sharey=True, squeeze=False)
        for axes, run in zip(grid[0], runs, strict=True):
            for drawn, (prompts, own) in zip(
                SERIES, frame[frame["run"] == run].groupby("prompts", sort=False), strict=False
            ):
                axes.plot(
                    own["layer"],
                    own["divergence_bits"],
                    color=drawn.colour,
                    marker=drawn.marker,
                    markersize=3.5,
                    label=prompts,
                )
                axes.plot(
                    own["layer"],
                    own["chance_high_bits"],
                    color="#999999",
                    linestyle=":",
                    marker=drawn.marker,
                    markersize=2,
                )
            axes.set_title(run, loc="left")
            axes.set_xlabel("layer")
            axes.xaxis.get_major_locator().set_params(integer=True)
        grid[0][0].set_ylim(bottom=0)  # the panels share it, so only once all are drawn
        grid[0][0].set_ylabel("divergence (bits; at most 1)")
        handles, names = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper right", ncols=4, frameon=False)
        note = "Jensen-Shannon, fine-tuned against base on the same tokens; dotted: 95th percentile of chance"
        return save_figure(figure, stem, label, note)
