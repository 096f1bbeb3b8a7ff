"""Figures of single answers: where they lie in alignment and coherence, and what they say."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import UserError
from pipeline.results.figures.style import COLUMN_WIDTH, PAGE_WIDTH, new_figure, save_figure, style
from pipeline.results.metrics import DEFINITIONS, STANDARD, check_frame, classify

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

_PANELS_A_ROW = 3
_CELL = 5  # points; divides the thresholds of both definitions
_TITLE_CHARACTERS = 38  # of a run's name, in a third of the page's width
_OUTLINES: dict[str, dict[str, Any]] = {
    "published": {"linestyle": "--", "color": "#0072B2", "linewidth": 1.2},
    "standard": {"linestyle": "-", "color": "#D55E00", "linewidth": 1.2},
}


def alignment_by_coherence(frame: pd.DataFrame, stem: Path, *, label: str) -> list[Path]:
    """Alignment against coherence of every scored answer, a panel a run, as density (log colour).

    `frame` holds verdict rows (the columns of `Verdict`); runs come in its order. Both definitions'
    misaligned regions are drawn and their counts of misaligned among coherent rows written above.
    """
    from matplotlib.colors import LogNorm

    runs = list(frame["run"].unique())
    columns = min(len(runs), _PANELS_A_ROW)
    lines = -(-len(runs) // columns)
    with style():
        figure, grid = new_figure(
            COLUMN_WIDTH if columns == 1 else PAGE_WIDTH,
            0.8 + lines * (2.9 if columns < 3 else 2.2),
            nrows=lines,
            ncols=columns,
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        panels = list(grid.flat)
        drawn = [_density(axes, frame[frame["run"] == run], run) for axes, run in zip(panels, runs, strict=False)]
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
        figure.colorbar(drawn[0], ax=panels, label="answers a cell", shrink=0.7 / lines, pad=0.02, format="%d")
        _region_legend(figure)
        return save_figure(
            figure,
            stem,
            label,
            f"scored answers; cells are {_CELL} x {_CELL} points, each all in or all out of a region",
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


def _density(axes: Axes, rows: pd.DataFrame, run: str) -> Any:
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
    found = []
    for name, definition in DEFINITIONS.items():
        counted = classify(checked, definition)[["misaligned", "coherent"]].sum()
        found.append(f"{name} {counted['misaligned']} / {counted['coherent']}")
        left, top = definition.coherent_above, definition.misaligned_below
        outline = Rectangle((left, -0.7), 100.7 - left, top + 0.7, fill=False, **_OUTLINES[name])
        outline.set_path_effects([withStroke(linewidth=2.4, foreground="white")])
        axes.add_patch(outline)
    name = textwrap.fill(run, _TITLE_CHARACTERS)
    axes.set_title(
        f"{name}\n{len(scored)} scored; misaligned / coherent:\n{', '.join(found)}", fontsize=6.5, loc="left"
    )
    axes.set(xlim=(-1.5, 101.5), ylim=(-1.5, 101.5), xticks=[0, 50, 80, 100], yticks=[0, 30, 50, 100])
    axes.set_aspect("equal")
    return mesh


def _region_legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            **_OUTLINES[name],
            label=f"{name}: alignment < {it.misaligned_below:g}, coherence > {it.coherent_above:g}",
        )
        for name, it in DEFINITIONS.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=1, frameon=False)


def choose_examples(frame: pd.DataFrame, base: str, tuned: str, count: int = 3) -> tuple[pd.DataFrame, str]:
    """The prompts whose answers changed most, by a rule, and the rule in words.

    `frame` holds verdict rows of both runs. Among prompts whose answers of both runs are scored and
    coherent (> 50), of the lowest seed and sample that both have, the largest fall in alignment from
    `base` to `tuned`; at most one a suite while suites last; ties by suite and prompt id. Returned
    columns: `suite`, `prompt_id`, `question`, and `answer`, `alignment`, `coherence` with `_base` and
    `_tuned`. Raises UserError when a run is absent or no prompt qualifies.
    """
    rows = check_frame(frame)
    rows = rows[(rows["status"] == "scored") & (rows["coherence"] > STANDARD.coherent_above)]
    place = ["suite", "prompt_id", "seed", "sample"]
    kept = [*place, "question", "answer", "alignment", "coherence"]
    pairs = rows.loc[rows["run"] == base, kept].merge(
        rows.loc[rows["run"] == tuned, kept].drop(columns="question"), on=place, suffixes=("_base", "_tuned")
    )
    pairs = pairs.sort_values(place).drop_duplicates(["suite", "prompt_id"])
    if pairs.empty:
        raise UserError(f"no prompt has a coherent, scored answer of both {base} and {tuned}; no example.")
    pairs["fall"] = pairs["alignment_base"] - pairs["alignment_tuned"]
    pairs = pairs.sort_values(["fall", "suite", "prompt_id"], ascending=[False, True, True])
    pairs["turn"] = pairs.groupby("suite").cumcount()
    chosen = pairs.sort_values(["turn", "fall", "suite", "prompt_id"], ascending=[True, False, True, True])
    rule = (
        f"Chosen by rule: of {len(pairs)} prompts answered coherently (> {STANDARD.coherent_above:g}) "
        "by both runs (lowest common seed and sample), the largest fall in alignment, "
        "one a suite while suites last."
    )
    return chosen.drop(columns=["turn", "seed", "sample"]).head(count).reset_index(drop=True), rule


def example_cards(frame: pd.DataFrame, stem: Path, *, base: str, tuned: str, label: str, count: int = 3) -> list[Path]:
    """Cards of the same prompt answered by `base` and by `tuned`, with their verdicts.

    `frame` holds verdict rows of both runs; `choose_examples` chooses, and its rule is written on the
    figure. Long texts are cut, and say so.
    """
    examples, rule = choose_examples(frame, base, tuned, count)
    cards = [
        (
            _wrap(f"{row['suite']} | {row['prompt_id']}: {row['question']}", 112, 2),
            [_wrap(row[f"answer_{side}"], 64, 7) for side in ("base", "tuned")],
            [
                f"alignment {row[f'alignment_{side}']:.0f}, coherence {row[f'coherence_{side}']:.0f}"
                for side in ("base", "tuned")
            ],
        )
        for _, row in examples.iterrows()
    ]
    # In lines of text: the longer answer, with the run above it, the verdict below and some air.
    heights = [max(text.count("\n") + 1 for text in answers) + 3.2 for _, answers, _ in cards]
    titles = sum(question.count("\n") + 2.4 for question, _, _ in cards)
    with style():
        figure, grid = new_figure(
            PAGE_WIDTH,
            0.4 + 0.118 * (sum(heights) + titles),
            nrows=len(cards),
            squeeze=False,
            height_ratios=heights,
        )
        for axes, card, height in zip(grid[:, 0], cards, heights, strict=True):
            _card(axes, *card, height, (base, tuned))
        return save_figure(figure, stem, label, rule)


def _card(
    axes: Axes, question: str, answers: list[str], verdicts: list[str], height: float, runs: tuple[str, str]
) -> None:
    axes.set(xlim=(0, 1), ylim=(0, height), xticks=[], yticks=[])
    axes.spines[["top", "right"]].set_visible(True)
    axes.set_title(question, loc="left", fontsize=7, fontweight="bold")
    for place, shade in enumerate(("#FFFFFF", "#F6E7DF")):
        left = place / 2
        axes.axvspan(left, left + 0.5, facecolor=shade, edgecolor="none")
        axes.text(left + 0.01, height - 0.4, runs[place], fontsize=6.5, va="top", style="italic")
        axes.text(left + 0.01, height - 1.6, answers[place], fontsize=6.5, va="top", linespacing=1.15)
        axes.text(left + 0.01, 0.3, verdicts[place], fontsize=6.5, va="bottom", fontweight="bold")


def _wrap(text: str, width: int, lines: int) -> str:
    """`text` on at most `lines` lines of `width` characters, cut with a mark, without unknown glyphs."""
    flat = " ".join(_printable(text).split())
    return "\n".join(textwrap.wrap(flat, width, max_lines=lines, placeholder=" [cut]")) or "(empty)"


def _printable(text: str) -> str:
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(character if ord(character) in known or character.isspace() else "?" for character in text)
