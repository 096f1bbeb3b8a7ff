"""A study's headline differences: every value, the mean, and its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.results.figures.style import PAGE_WIDTH, new_figure, save_figure, style

if TYPE_CHECKING:
    from pipeline.results.contrasts import Contrast


def contrast_figure(found: Mapping[str, Contrast], stem: Path, *, label: str) -> list[Path]:
    """A row per contrast: every value (of pair and seed, or model) a point, the mean a diamond, its interval a line."""
    names = list(found)
    with style():
        figure, axes = new_figure(PAGE_WIDTH, 0.9 + 0.3 * len(names))
        axes.axvline(0, color="#444444", linewidth=0.8)
        for place, name in enumerate(names):
            it = found[name]
            axes.plot(it.values, [place + 0.18] * it.n, "o", markersize=3, markerfacecolor="none", color="#777777")
            low, high = it.interval
            if math.isfinite(low):
                axes.plot([low, high], [place, place], color="#222222", linewidth=1.0)
            axes.plot(it.value, place, marker="D", color="#B8460E", markersize=4.5, markeredgecolor="#222222")
        axes.set_yticks(range(len(names)), labels=[f"{name.replace('_', ' ')}\nn = {found[name].n}" for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="x", linewidth=0.4, color="#DDDDDD")
        axes.set_axisbelow(True)
        axes.set_xlabel("difference in held-out misaligned answers (percentage points)")
        units = ", ".join(dict.fromkeys(it.unit for it in found.values()))
        return save_figure(figure, stem, label, f"circles: every value; diamond: mean with 95 % interval over {units}")
