"""Misalignment within one model, against the number of experts that is varied: a panel a lever."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.results.figures.style import COLUMN_WIDTH, draw_points, new_figure, save_figure, style
from pipeline.results.levers import MEASURES, line_rows
from pipeline.results.sparsity import interval_text

if TYPE_CHECKING:
    import pandas as pd


def lever_figure(frame: pd.DataFrame, stem: Path, *, label: str, note: str) -> list[Path]:
    """Rise in misaligned answers (points) by level, of every lever of `results.levers.lever_frame`."""
    lines = line_rows(frame)
    with style():
        figure, panels = new_figure(COLUMN_WIDTH, 2.2 * len(lines), nrows=len(lines), squeeze=False)
        for axes, line in zip(panels[:, 0], lines, strict=True):
            own = frame[frame["contrast"] == line["contrast"]]
            drawn = own.rename(columns={"by_seed": "effect_by_seed", "low": "effect_low", "high": "effect_high"})
            axes.set_xscale("log", base=2)
            axes.axhline(0, linewidth=0.6, color="#888888", zorder=1)
            axes.plot(own["level"], own["effect"], color="#444444", linewidth=0.9, zorder=1.5)
            draw_points(axes, own["level"], drawn, "effect", "fine-tuned")
            axes.set_xticks(own["level"], labels=[f"{level}" for level in own["level"]], minor=False)
            axes.set_xticks([], minor=True)
            axes.margins(x=0.12, y=0.12)
            axes.set_xlabel(f"{MEASURES[line['measure']]}, of {own['experts'].iloc[0]}")
            axes.set_ylabel("rise in misaligned\nanswers (points)")
            axes.grid(axis="y", linewidth=0.4, color="#DDDDDD")
            axes.set_axisbelow(True)
            slope = f"{line['slope']:+.1f} points a doubling (95 % {interval_text(line)})"
            axes.set_title(f"{line['model']}: {slope}", fontsize=6, loc="left")
        return save_figure(figure, stem, label, note)
