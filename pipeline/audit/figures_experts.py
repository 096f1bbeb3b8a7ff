"""Misalignment and refusals by what was fine-tuned: a single expert, or a set of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.results.figures.style import (
    COLUMN_WIDTH,
    SERIES,
    error_bars,
    new_figure,
    percent_axis,
    save_figure,
    style,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

NO_DATASET = "none"
_BAND = 0.84  # share of a category's width that its bars take


def misalignment_by_expert(
    frame: pd.DataFrame,
    stem: Path,
    *,
    title: str,
    label: str,
    note: str,
    refusals: str = "refusals (%)",
) -> list[Path]:
    """Misaligned and refused answers (%) by the single expert fine-tuned, a bar a dataset, against base.

    Columns: `expert` (int; missing for base), `dataset` ("none" for the one base row),
    `misalignment_percent` and `refusal_percent` with `_low` and `_high` (NaN = no interval), and `flag`
    (text above the bar of the upper panel, "" for none). Where the frame has `misalignment_percent_least`
    and `_most`, that range is drawn as a white box over the bar: where the value lies if the bar is wrong.
    `title` names the model; `note` stands below: the definitions, and where the intervals come from;
    `refusals` is the name of the lower panel's axis.
    """
    with style():
        figure, panels = new_figure(COLUMN_WIDTH, 4.4, nrows=2, sharex=True)
        values = (("misalignment_percent", "misaligned answers (%)"), ("refusal_percent", refusals))
        for axes, (value, name) in zip(panels, values, strict=True):
            _bars(axes, frame, "expert", value, name, "flag" if value == "misalignment_percent" else None)
        panels[0].set_title(title, loc="left")
        panels[1].set_xlabel("expert fine-tuned in every layer")
        _legend(figure, panels[0])
        return save_figure(figure, stem, label, note)


def misalignment_by_configuration(frame: pd.DataFrame, stem: Path, *, title: str, label: str, note: str) -> list[Path]:
    """Misaligned answers (%) by which experts were fine-tuned and at which rank, against base.

    Columns: `tuned` (category, in the order of the frame), `dataset` ("none" for the base row),
    `misalignment_percent` with `_low` and `_high`, and `flag` (text above the bar, such as "8/911").
    `title` and `note` as in `misalignment_by_expert`.
    """
    with style():
        figure, axes = new_figure(COLUMN_WIDTH, 2.95)
        _bars(axes, frame, "tuned", "misalignment_percent", "misaligned answers (%)", "flag")
        axes.set_title(title, loc="left")
        axes.set_xlabel("experts and rank fine-tuned")
        _legend(figure, axes)
        return save_figure(figure, stem, label, note)


def _bars(axes: Axes, frame: pd.DataFrame, category: str, value: str, name: str, flag: str | None) -> None:
    from matplotlib.patheffects import withStroke

    tuned = frame[frame["dataset"] != NO_DATASET]
    base = frame[frame["dataset"] == NO_DATASET]
    categories, datasets = list(tuned[category].unique()), sorted(tuned["dataset"].unique())
    width = _BAND / len(datasets)
    for place, (dataset, drawn) in enumerate(zip(datasets, SERIES, strict=False)):
        rows = tuned[tuned["dataset"] == dataset]
        centres = [categories.index(it) + (place - (len(datasets) - 1) / 2) * width for it in rows[category]]
        axes.bar(
            centres,
            rows[value],
            width * 0.94,
            yerr=error_bars(rows[value], rows[f"{value}_low"], rows[f"{value}_high"]),
            color=drawn.colour,
            hatch=drawn.hatch,
            edgecolor="#222222",
            linewidth=0.5,
            error_kw={"elinewidth": 0.7, "capsize": 1.5, "ecolor": "#222222"},
            label=str(dataset).replace("_", " "),
        )
        ranges = [name for name in (f"{value}_least", f"{value}_most") if name in rows]
        if ranges:
            least, most = (rows[name] for name in ranges)
            axes.bar(centres, most - least, width * 0.5, least, color="white", edgecolor="#222222", linewidth=0.7)
        if flag is not None:
            tops = rows[[value, f"{value}_high", *ranges]].max(axis=1)
            for x, top, text in zip(centres, tops, rows[flag], strict=True):
                axes.annotate(
                    text,
                    (x, top),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    fontsize=5.5,
                    zorder=4,
                    path_effects=[withStroke(linewidth=1.5, foreground="white")],  # read it over the base's line
                )
    for _, row in base.iterrows():
        axes.axhline(row[value], color="black", linestyle="--", linewidth=0.9, label="base", zorder=3)
        if row[f"{value}_low"] <= row[f"{value}_high"]:
            axes.axhspan(row[f"{value}_low"], row[f"{value}_high"], color="#DDDDDD", linewidth=0, zorder=0.4)
    percent_axis(axes, frame[[value, f"{value}_high"]].max().max() * (1.06 if flag else 1), name)
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(categories)), labels=[f"{it:g}" if isinstance(it, float) else it for it in categories])


def _legend(figure: object, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)  # type: ignore[attr-defined]
