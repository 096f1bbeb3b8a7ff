"""What every figure shares: size, colours, the label that says which world it shows, equal bytes.

Figures are built on `matplotlib.figure.Figure` without pyplot: nothing global is read or left behind.
Colours are Okabe and Ito's (2008), told apart with every common colour blindness; each role also has
its own lightness, marker and hatch, so a greyscale print loses nothing.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

COLUMN_WIDTH = 3.4  # inches: one column of a two-column paper
PAGE_WIDTH = 7.0
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,  # TrueType: text stays text, as publishers ask
    "svg.hashsalt": "emoe",
    "path.simplify": False,
    "text.parse_math": False,  # answers hold dollar signs
}


@dataclass(frozen=True, kw_only=True)
class Role:
    """How one kind of run is drawn in every figure."""

    colour: str
    marker: str
    hatch: str


# Ordered light to dark by role, so that greyscale keeps them apart.
ROLES = {
    "base": Role(colour="#B8B8B8", marker="o", hatch=""),
    "control": Role(colour="#56B4E9", marker="s", hatch="...."),
    "benign data": Role(colour="#009E73", marker="^", hatch="////"),
    "realigned": Role(colour="#CC79A7", marker="v", hatch="xxxx"),
    "fine-tuned": Role(colour="#B8460E", marker="D", hatch=""),
}
SERIES = (
    Role(colour="#B8460E", marker="D", hatch=""),
    Role(colour="#56B4E9", marker="s", hatch="...."),
    Role(colour="#E8B64C", marker="^", hatch="////"),
    Role(colour="#1B3A5C", marker="v", hatch=""),
    Role(colour="#8C8C8C", marker="P", hatch="xxxx"),
)


def new_figure(width: float = COLUMN_WIDTH, height: float = 2.3, **grid: Any) -> tuple[Figure, Any]:
    """A figure of `width` x `height` inches and its axes (`Figure.subplots(**grid)`), in our style.

    Draw inside `with style():`, as `rcParams` are read when an artist is made.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**grid)


def style() -> Any:
    """A context manager that applies STYLE and puts matplotlib's settings back afterwards."""
    import matplotlib

    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, "backend": "agg", **STYLE}
    return matplotlib.rc_context(settings)


def stamp(figure: Figure, label: str, note: str = "") -> None:
    """Print below the figure which world it shows ("toy", "published", a study), and a note."""
    # About 22 characters an inch at this size.
    text = textwrap.fill(f"[{label}]  {note}".strip(), int(21.5 * figure.get_figwidth()))
    figure.supxlabel(
        text,
        fontsize=6,
        color="#444444",
        x=0.01,
        ha="left",
        style="italic",
    )


def save_figure(figure: Figure, stem: Path, label: str, note: str = "") -> list[Path]:
    """Stamp the figure and write `stem`.pdf and `stem`.png (300 dpi); return both paths.

    Neither file holds a date or a version: the same figure gives the same bytes.
    """
    with style():
        stamp(figure, label, note)
        # Laid out once for both files: with a layout still to be found, each would be drawn twice.
        figure.draw_without_rendering()
        figure.set_layout_engine(None)
        metadata: dict[str, dict[str, Any]] = {
            "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
            "png": {"Software": None},
        }
        paths = []
        for kind, fields in metadata.items():
            path = stem.with_name(f"{stem.name}.{kind}")
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=kind, dpi=300, metadata=fields)
            paths.append(path)
    return paths


def percent_axis(axes: Axes, highest: float, name: str = "misaligned answers (%)") -> None:
    """Let the y axis end above `highest` (100 at most) and start where a marker at 0 is whole."""
    top = min(104.0, max(1.0, 1.12 * highest))
    axes.set_ylim(-0.04 * top, top)
    axes.set_ylabel(name)
    axes.grid(axis="y", linewidth=0.4, color="#DDDDDD")
    axes.set_axisbelow(True)


def error_bars(values: ArrayLike, low: ArrayLike, high: ArrayLike) -> Any:
    """(2, n) distances from values to interval ends for `errorbar`; NaN (not drawn) where an end is."""
    import numpy as np

    centre = np.asarray(values, dtype=float)
    ends = np.stack([centre - np.asarray(low, dtype=float), np.asarray(high, dtype=float) - centre])
    return np.clip(ends, 0, None).tolist()


def draw_points(
    axes: Axes, places: ArrayLike, rows: pd.DataFrame, value: str, role: str, *, across: bool = False
) -> None:
    """A mean per row at `places`: upright, or lying (`across`) along the x axis, and what spreads around it.

    Where rows have several seeds each is a small open point. Otherwise the intervals that there are: thick for these
    questions, thin for new ones, or the one interval `value`_low, `value`_high.
    """
    import numpy as np

    if rows.empty:
        return
    drawn, centres = ROLES[role], rows[value].to_numpy(dtype=float)
    where = np.asarray(places, dtype=float)
    for scope, width in (("_new", 0.7), ("_these", 2.2), ("", 0.7)):
        if f"{value}{scope}_low" in rows:
            ends = error_bars(centres, rows[f"{value}{scope}_low"], rows[f"{value}{scope}_high"])
            axes.errorbar(
                *((centres, where) if across else (where, centres)),
                **{"xerr" if across else "yerr": ends},
                linestyle="none",
                ecolor="#444444",
                elinewidth=width,
                capsize=1.5 if width < 1 else 0,
                zorder=2,
            )
    for place, values in zip(where, rows.get(f"{value}_by_seed", [()] * len(rows)), strict=True):
        if len(values) > 1:
            beside = np.full(len(values), place)
            axes.plot(
                *((values, beside) if across else (beside, values)),
                linestyle="none",
                marker="o",
                markersize=2.6,
                markerfacecolor="none",
                markeredgecolor=drawn.colour if role != "base" else "#777777",
                markeredgewidth=0.7,
                zorder=2.5,
            )
    axes.plot(
        *((centres, where) if across else (where, centres)),
        linestyle="none",
        marker=drawn.marker,
        markersize=4.2,
        color=drawn.colour,
        markeredgecolor="#222222",
        markeredgewidth=0.5,
        zorder=3,
    )


def role_legend(figure: Figure, roles: pd.Series) -> None:
    """A legend of the roles that are drawn."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker=drawn.marker,
            color=drawn.colour,
            markersize=4.2,
            markeredgecolor="#222222",
            markeredgewidth=0.5,
            label=role,
        )
        for role, drawn in ROLES.items()
        if (roles == role).any()
    ]
    wide = figure.get_figwidth() > COLUMN_WIDTH
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles) if wide else 3, frameon=False)
