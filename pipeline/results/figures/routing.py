"""Where a training set's tokens are routed, and which experts were adapted for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.results.figures.style import PAGE_WIDTH, new_figure, save_figure, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.ticker import FuncFormatter


def routing_by_expert(frame: pd.DataFrame, stem: Path, *, label: str) -> list[Path]:
    """Share of tokens (%) that reach each expert, by layer and expert, a panel a run; adapted experts are ringed.

    Columns as `routing_frame` gives them. A layer's shares sum to 100 times the experts active a token.
    """
    from matplotlib.ticker import MaxNLocator

    runs = list(frame["run"].unique())
    layers = frame["layer"].nunique()
    with style():
        height = 0.8 + len(runs) * min(4.5, 0.9 + 0.09 * layers)
        figure, grid = new_figure(PAGE_WIDTH, height, nrows=len(runs), sharex=True, squeeze=False)
        for axes, run in zip(grid[:, 0], runs, strict=True):
            rows = frame[frame["run"] == run]
            wide = rows.pivot(index="layer", columns="expert", values="share")
            image = axes.imshow(
                wide.to_numpy(),
                cmap="Blues",
                vmin=0,
                vmax=frame["share"].max(),
                aspect="auto",
                interpolation="nearest",
            )
            places = {layer: place for place, layer in enumerate(wide.index)}
            ringed = rows[rows["chosen"]]
            axes.scatter(
                ringed["expert"],
                ringed["layer"].map(places),
                s=max(4, min(40, 2400 / wide.shape[1] / max(1, layers / 12))),
                facecolors="none",
                edgecolors="#D55E00",
                linewidths=0.8,
            )
            axes.set_title(str(run), loc="left")
            axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
            axes.yaxis.set_major_formatter(_layer_at(list(wide.index)))
            axes.set_ylabel("layer")
        grid[-1][0].set_xlabel("expert")
        figure.colorbar(image, ax=list(grid[:, 0]), label="tokens routed here (%)", pad=0.02)
        return save_figure(figure, stem, label, "counted on the training set; ringed: adapted")


def _layer_at(layers: list[int]) -> FuncFormatter:
    """Names a row of the image by its layer: a model may have layers without experts, which have no row."""
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda row, _: str(layers[int(row)]) if row in range(len(layers)) else "")
