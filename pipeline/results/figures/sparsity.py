"""Misalignment against sparsity, with the exact test that permutes models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.results.figures.style import (
    COLUMN_WIDTH,
    PAGE_WIDTH,
    ROLES,
    draw_points,
    new_figure,
    percent_axis,
    role_legend,
    save_figure,
    style,
)
from pipeline.results.sparsity import MEASURES, NAMES, interval_text, regress
from pipeline.results.statistics import exact_rank_test

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_PUBLISHED: dict[str, Any] = {
    "linestyle": "none", "marker": "x", "color": "#999999", "markersize": 4.5, "zorder": 1.8,
}  # fmt: skip
_WITHIN: dict[str, Any] = {"color": "#1B3A5C", "marker": ".", "linewidth": 0.8, "linestyle": "--", "zorder": 1.7}


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


def misalignment_over_models(
    models: pd.DataFrame,
    tests: pd.DataFrame,
    published: pd.DataFrame,
    within: pd.DataFrame,
    stem: Path,
    *,
    label: str,
    note: str,
) -> list[Path]:
    """Each model's rise in misalignment (points) against experts per layer, and against the share of them active.

    `models`: one contrast's rows of `results.sparsity.model_effects`, drawn with the interval and every seed, and the
    line of the meta-regression. `tests`: that contrast's rows, one a measure. `published`: columns model, experts,
    active_percent, effect; in grey, in no test. `within`: the levels of `results.levers.lever_frame` of experts
    that a token is routed to: a line a model beside the models, against the share active.
    """
    import numpy as np

    with style():
        figure, panels = new_figure(PAGE_WIDTH, 5.6, nrows=2)
        drawn = models.rename(columns={"by_seed": "effect_by_seed", "low": "effect_low", "high": "effect_high"})
        for axes, measure in zip(panels, MEASURES, strict=True):
            axes.set_xscale("log", base=2)
            axes.axhline(0, linewidth=0.6, color="#888888", zorder=1)
            if not published.empty:
                axes.plot(published[measure], published["effect"], **_PUBLISHED)
            if measure == "active_percent":
                for contrast, own in within.groupby("contrast", sort=False) if not within.empty else ():
                    axes.plot(100 * own["level"] / own["experts"], own["effect"], **_WITHIN, label=contrast)
            repeat = models.groupby(measure).cumcount()  # models of one sparsity stand side by side
            places = models[measure] * 2 ** (0.12 * repeat)
            draw_points(axes, places, drawn, "effect", "fine-tuned")
            for place, top, model in zip(places, models[["effect", "high"]].max(axis=1), models["model"], strict=True):
                axes.annotate(model, (place, top), (0, 3), textcoords="offset points", ha="center", rotation=90, size=5)
            intercept, slope = (it.value for it in regress(models, [measure]).coefficients)
            ends = np.array([models[measure].min(), models[measure].max()])
            axes.plot(ends, intercept + slope * np.log2(ends), color="#444444", linewidth=0.9, zorder=1.5)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.margins(x=0.06, y=0.22)
            axes.set_xlabel(NAMES[measure])
            axes.set_ylabel("rise in misaligned answers (points)")
            axes.grid(axis="y", linewidth=0.4, color="#DDDDDD")
            axes.set_axisbelow(True)
            tested = tests[tests["measure"] == measure].to_dict("records")[0]
            axes.set_title(_tested(tested), fontsize=6, loc="left")
        return save_figure(figure, stem, label, note)


def _tested(row: Mapping[Any, Any]) -> str:
    """A test in two lines above a panel."""
    slope = f"{row['slope']:+.1f} points a doubling (95 % {interval_text(row)})"
    if not math.isfinite(row.get("rho", math.nan)):
        return f"{row['models']} models\n{slope}"
    floor = f"it cannot be below {row['floor']:.2g} here"
    return (
        f"{row['models']} models: rho {row['rho']:+.2f}, two-sided p = {row['p']:.2g} ({row['test']}; {floor})\n{slope}"
    )


def _highest(frame: pd.DataFrame) -> float:
    """The highest of what is drawn."""
    ends = [name for name in frame if str(name).startswith("misalignment_percent_") and str(name).endswith("_high")]
    drawn = [float(value) for name in ["misalignment_percent", *ends] for value in frame[name]]
    if "misalignment_percent_by_seed" in frame:
        drawn += [value for values in frame["misalignment_percent_by_seed"] for value in values]
    return max((value for value in drawn if math.isfinite(value)), default=0.0)
