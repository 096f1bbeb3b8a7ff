"""Misalignment against sparsity, with the exact test that permutes models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.results.figures.style import (
    COLUMN_WIDTH,
    ROLES,
    draw_points,
    new_figure,
    percent_axis,
    role_legend,
    save_figure,
    style,
)
from pipeline.results.statistics import exact_rank_test

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def misalignment_by_sparsity(frame: pd.DataFrame, stem: Path, *, label: str, note: str) -> list[Path]:
    """Misaligned answers (%) against experts per layer, and against the share of them active per token.

    Columns: `model`, `role`, `experts` (per layer), `active` (experts that a token is routed to),
    `misalignment_percent`, and `misalignment_percent_by_seed` or intervals. One point per row. Above each panel stands
    the exact permutation test of Spearman's correlation over the fine-tuned points: models are permuted, not points.
    """
    with style():
        figure, panels = new_figure(COLUMN_WIDTH, 4.0, nrows=2)
        shares = 100 * frame["active"] / frame["experts"]
        _sparsity_panel(panels[0], frame, frame["experts"], "experts per layer")
        _sparsity_panel(panels[1], frame, shares, "experts active per token (%)")
        role_legend(figure, frame["role"])
        return save_figure(figure, stem, label, note)


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
        draw_points(axes, np.asarray(x[rows.index] * 2**shift), rows, "misalignment_percent", role)
    percent_axis(axes, _highest(frame))
    models = frame.groupby(x)["model"].unique()
    ticks = ["\n".join([f"{at:g}", *(names if len(names) <= 2 else [])]) for at, names in models.items()]
    axes.set_xticks(models.index.to_numpy(), labels=ticks, minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlim(models.index.min() / 1.6, models.index.max() * 1.6)
    axes.set_xlabel(name)
    tuned = frame[(frame["role"] == "fine-tuned") & frame["misalignment_percent"].notna()]
    places = x[tuned.index]
    if 2 <= tuned["model"].nunique() <= 9 and places.nunique() > 1 and tuned["misalignment_percent"].nunique() > 1:
        test = exact_rank_test(places, tuned["misalignment_percent"], units=list(tuned["model"]))
        axes.set_title(
            f"{len(tuned)} fine-tuned runs of n = {test.n} models, models permuted: rho {test.rho:+.2f},\n"
            f"exact two-sided p = {test.p_value:.2g} (it cannot be below {test.floor:.2g} here)",
            fontsize=6,
            loc="left",
        )


def _highest(frame: pd.DataFrame) -> float:
    """The highest of what is drawn."""
    import math

    ends = [name for name in frame if str(name).startswith("misalignment_percent_") and str(name).endswith("_high")]
    drawn = [float(value) for name in ["misalignment_percent", *ends] for value in frame[name]]
    if "misalignment_percent_by_seed" in frame:
        drawn += [value for values in frame["misalignment_percent_by_seed"] for value in values]
    return max((value for value in drawn if math.isfinite(value)), default=0.0)
