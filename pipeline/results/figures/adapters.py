"""Where an adapter changed the model: its magnitude by layer and expert."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import UserError
from pipeline.results.figures.style import COLUMN_WIDTH, PAGE_WIDTH, new_figure, save_figure, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

A_COLUMN = 5


def adapter_magnitude(frame: pd.DataFrame, stem: Path, *, label: str) -> list[Path]:
    """Frobenius norm of the change by layer and expert, a panel a run on one colour scale, five panels a column.

    Columns: `layer`, `expert` (NA outside experts: left out), `norm` as `adapter_norms` gives them, and
    `run` and `experts` (a layer of the model), which the caller adds; the projections of an expert are
    taken together (root of the sum of squares). Experts that were not adapted are hatched. Raises
    UserError when no row belongs to an expert.
    """
    experts = frame[frame["expert"].notna()]
    if experts.empty:
        raise UserError("no adapted expert to draw: the adapter's rows are all outside experts.")
    squares = experts.assign(square=experts["norm"] ** 2)
    norms = squares.groupby(["run", "layer", "expert"], sort=True)["square"].sum() ** 0.5
    layers = range(int(experts["layer"].max()) + 1)
    columns = range(int(experts["experts"].max()))
    runs = list(experts["run"].unique())
    across = -(-len(runs) // A_COLUMN)
    down = -(-len(runs) // across)
    with style():
        figure, grid = new_figure(
            COLUMN_WIDTH if across == 1 else PAGE_WIDTH,
            0.9 + down * min(2.0, 0.75 + 0.16 * len(layers)),
            nrows=down,
            ncols=across,
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        panels = grid.T.flatten()
        for axes in panels[len(runs) :]:
            axes.remove()
        for axes, run in zip(panels, runs, strict=False):
            wide = norms.loc[run].unstack("expert").reindex(index=layers, columns=columns)
            image = _panel(axes, wide.to_numpy(dtype=float), norms.max())
            axes.set_title(str(run), loc="left", fontsize=6 if across > 1 else None)
        for axes in grid[:, 0]:
            axes.set_ylabel("layer")
        for axes in grid[-1]:
            axes.set_xlabel("expert")
        figure.colorbar(
            image, ax=list(grid.flatten()), label="norm of scaling * B A", pad=0.02, shrink=0.5 if down > 2 else 1
        )
        return save_figure(figure, stem, label, "Frobenius norm over an expert's projections; hatched: not adapted")


def _panel(axes: Axes, values: Any, highest: float) -> Any:
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    axes.set_facecolor("white")
    axes.patch.set(hatch="//////", edgecolor="#C8C8C8")
    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap="cividis_r",
        vmin=0,
        vmax=highest or 1,
        aspect="auto",
        interpolation="nearest",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    return image
