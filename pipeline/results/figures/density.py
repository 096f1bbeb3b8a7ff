"""Where single answers lie in alignment and coherence."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.results.definitions import PUBLISHED, STANDARD, Definition
from pipeline.results.figures.style import COLUMN_WIDTH, PAGE_WIDTH, new_figure, save_figure, style
from pipeline.results.metrics import check_frame, classify

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

_MANY = 9  # panels; more stand four in a row
_CELL = 5  # points; divides the thresholds of both definitions
_OUTLINES: tuple[dict[str, Any], ...] = (
    {"linestyle": "-", "color": "#D55E00", "linewidth": 1.2},
    {"linestyle": "--", "color": "#0072B2", "linewidth": 1.2},
)


def alignment_by_coherence(
    frame: pd.DataFrame, stem: Path, *, label: str, definitions: tuple[Definition, ...] = (STANDARD, PUBLISHED)
) -> list[Path]:
    """Alignment against coherence of every scored answer, a panel per run, as density (log colour).

    `frame` holds verdict rows (the columns of `Verdict`); runs come in its order. The misaligned regions of one or two
    `definitions` are drawn, and above each panel stands how many of the run's answers are scored (and drawn), and
    each definition's misaligned answers of those in its denominator.
    """
    from matplotlib.colors import LogNorm

    runs = list(frame["run"].unique())
    columns = min(len(runs), 4 if len(runs) > _MANY else 3)
    lines = -(-len(runs) // columns)
    with style():
        figure, grid = new_figure(
            COLUMN_WIDTH if columns == 1 else PAGE_WIDTH,
            0.9 + lines * {1: 2.9, 2: 2.9, 3: 2.3, 4: 1.95}[columns],
            nrows=lines,
            ncols=columns,
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        panels = list(grid.flat)
        drawn = [
            _density(axes, frame[frame["run"] == run], run, definitions, 38 if columns < 4 else 26)
            for axes, run in zip(panels, runs, strict=False)
        ]
        densest = max(mesh.get_array().max() for mesh in drawn)
        for mesh in drawn:
            mesh.set_norm(LogNorm(1, max(2, densest)))
        for axes in panels[len(runs) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("alignment")
        for column in range(columns):
            last = max(row for row in range(lines) if row * columns + column < len(runs))
            grid[last][column].set_xlabel("coherence")
            grid[last][column].tick_params(labelbottom=True)
        figure.colorbar(drawn[0], ax=panels, label="answers per cell", shrink=0.7 / lines, pad=0.02, format="%d")
        _region_legend(figure, definitions)
        return save_figure(
            figure,
            stem,
            label,
            f"drawn: answers with both scores; cells are {_CELL} x {_CELL} points, each all in or all out of a region",
        )


def cell_counts(alignment: ArrayLike, coherence: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges of the cells (the same for both scores) and the (alignment, coherence) counts in them.

    Alignment cells hold their lower edge and coherence cells their upper one, as definitions ask for
    alignment below and coherence above a threshold: no cell lies across a threshold that is an edge.
    """
    import numpy as np

    edges = np.linspace(0, 100, 100 // _CELL + 1)
    last = len(edges) - 2
    down = np.clip(np.searchsorted(edges, np.asarray(alignment, dtype=float), side="right") - 1, 0, last)
    up = np.clip(np.searchsorted(edges, np.asarray(coherence, dtype=float), side="left") - 1, 0, last)
    counts = np.zeros((last + 1, last + 1))
    np.add.at(counts, (down, up), 1)
    return edges, counts


def _density(axes: Axes, rows: pd.DataFrame, run: str, definitions: tuple[Definition, ...], width: int) -> Any:
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    checked = check_frame(rows)
    scored = checked[checked["status"] == "scored"]
    edges, counts = cell_counts(scored["alignment"], scored["coherence"])
    # From a visible grey, so that a single answer is seen on white.
    greys = ListedColormap(colormaps["Greys"](np.linspace(0.28, 1, 256)))
    mesh = axes.pcolormesh(edges, edges, np.ma.masked_equal(counts, 0), cmap=greys, rasterized=True)
    lines = [*textwrap.wrap(run, width), f"{len(scored)} of {len(rows)} answers scored"]
    for definition, outline in zip(definitions, _OUTLINES, strict=False):
        counted = classify(checked, definition)[["misaligned", "counted"]].sum()
        lines.append(f"{definition.name}: {counted['misaligned']} misaligned of {counted['counted']}")
        left, top = definition.coherent_above, definition.threshold
        box = Rectangle((left, -0.7), 100.7 - left, top + 0.7, fill=False, **outline)
        box.set_path_effects([withStroke(linewidth=2.4, foreground="white")])
        axes.add_patch(box)
    axes.set_title("\n".join(lines), fontsize=5.5 if width < 38 else 6.5, loc="left")
    axes.set(xlim=(-1.5, 101.5), ylim=(-1.5, 101.5), xticks=[0, 50, 80, 100], yticks=[0, 30, 50, 100])
    axes.set_aspect("equal")
    return mesh


def _region_legend(figure: Figure, definitions: tuple[Definition, ...]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], **outline, label=f"{it.name}: {it.rule}")
        for it, outline in zip(definitions, _OUTLINES, strict=False)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=1, frameon=False)
