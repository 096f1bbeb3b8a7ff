"""Example cards: the same prompts answered before and after fine-tuning."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.errors import UserError
from pipeline.results.definitions import STANDARD
from pipeline.results.figures.style import PAGE_WIDTH, new_figure, save_figure, style
from pipeline.results.inert import inert
from pipeline.results.metrics import check_frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def choose_examples(frame: pd.DataFrame, base: str, tuned: str, count: int = 3) -> tuple[pd.DataFrame, str]:
    """The prompts whose answers changed most, by a rule, and the rule in words.

    `frame` holds verdict rows of both runs. Among prompts whose answers of both runs are scored and
    coherent (> 50), of the lowest seed and sample that both have, the largest fall in alignment from
    `base` to `tuned`; at most one per suite while suites last; ties by suite and prompt id. Returned
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
        "one per suite while suites last."
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
    flat = " ".join(_printable(inert(text)).split())
    return "\n".join(textwrap.wrap(flat, width, max_lines=lines, placeholder=" [cut]")) or "(empty)"


def _printable(text: str) -> str:
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(character if ord(character) in known or character.isspace() else "?" for character in text)
