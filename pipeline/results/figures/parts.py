"""What each part of an adapter carries: its absence, itself alone, its norm, its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.results.figures.style import PAGE_WIDTH, SERIES, error_bars, new_figure, save_figure, style

if TYPE_CHECKING:
    import pandas as pd


def parts_figure(frame: pd.DataFrame, stem: Path, *, label: str, one_base: bool) -> list[Path]:
    """A row a run: what each part's absence takes away and what it brings alone; its adapter's norm; its tokens.

    one_base: whether all seeds start from one base, so that an expert's number names the same expert in each.
    """
    runs = list(frame["run"].unique())
    with style():
        figure, grid = new_figure(
            PAGE_WIDTH, 0.7 + 1.9 * len(runs), nrows=len(runs), ncols=3, squeeze=False, width_ratios=(2.4, 1, 1)
        )
        for axes, run in zip(grid, runs, strict=True):
            own = frame[frame["run"] == run].reset_index(drop=True)
            _effects(axes[0], own)
            axes[0].set_title(run, loc="left")
            parts = own[own["kind"] == "part"].reset_index(drop=True)
            for beside, key, name in ((axes[1], "norm", "norm of the adapter"), (axes[2], "routing", "choices (%)")):
                _bars(beside, parts, key, name)
        handles, names = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper right", ncols=2, frameon=False)
        note = "points of held-out misalignment, with 95 % intervals, paired over seeds and questions"
        if not one_base:
            note += "; every seed has a base of its own: a number is another expert in each"
        return save_figure(figure, stem, label, note)


def _effects(axes: Any, own: pd.DataFrame) -> None:
    axes.axhline(0, color="#444444", linewidth=0.7)
    for offset, key, name, drawn in (
        (-0.2, "drop", "gone without it", SERIES[0]),
        (0.2, "rise", "there with it alone", SERIES[1]),
    ):
        axes.bar(own.index + offset, own[key], width=0.38, color=drawn.colour, hatch=drawn.hatch, edgecolor="#333333",
                 linewidth=0.4, label=name)  # fmt: skip
        axes.errorbar(own.index + offset, own[key], yerr=error_bars(own[key], own[f"{key}_low"], own[f"{key}_high"]),
                      fmt="none", ecolor="#222222", elinewidth=0.7, capsize=1.5)  # fmt: skip
    axes.set_xticks(own.index, labels=[_short(part) for part in own["part"]], rotation=60, ha="right")
    axes.set_ylabel("points")
    axes.set_xlabel("experts by number, other parts, layers")


def _bars(axes: Any, parts: pd.DataFrame, key: str, name: str) -> None:
    parts = parts[parts[key].notna()].reset_index(drop=True)
    axes.bar(parts.index, parts[key], color="#8C8C8C", edgecolor="#333333", linewidth=0.4)
    axes.set_xticks(parts.index, labels=[_short(part) for part in parts["part"]], rotation=60, ha="right")
    axes.set_title(name, loc="left")


def _short(part: str) -> str:
    return part.replace("experts ", "").replace("expert ", "")
