"""Within one model: misalignment against how many experts a token is routed to, or how many carry the adapter.

A contrast of which one of these two numbers differs between the pairs, and nothing else does, is a lever
(results/contrasts.py: lever_of): the model is held fixed, which no comparison of models can do. A level's value at a
seed is the mean over its pairs. Seeds are blocks: the slope on log2 of the number is least squares' with an intercept a
seed, its interval Student's t with levels x seeds - seeds - 1 degrees of freedom. Page's test (1963) asks for an order
alone: exact, levels permuted within seeds. Neither says anything of another model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.results.contrasts import ACTIVE, ADAPTED, by_seed, level_of, lever_of
from pipeline.results.frames import by_seed_text
from pipeline.results.sparsity import interval_text, model_effects
from pipeline.results.statistics import student_p, student_t
from pipeline.results.tables import markdown_table, write_table

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.results.study import Results

MEASURES = {ACTIVE: "experts a token is routed to", ADAPTED: "experts that carry the adapter"}
# Fewer have no order to ask for: of two, the slope says all.
FEWEST_ORDERED = 3


def lever_frame(results: Results) -> pd.DataFrame:
    """A row per lever's level: contrast, measure, model, experts, level, seeds, by_seed, effect, low, high.

    by_seed, effect: differences in held-out misalignment (points), of the seeds that all levels have. low, high: 95 %
    by Student's t with the spread over seeds pooled over levels. A lever without such a seed, or with a level of which
    no answer counts, has no rows (`without_values`).
    """
    import pandas as pd

    frames = []
    for name, settings in results.study.contrasts.items():
        measure = lever_of(results.params, settings)
        if measure is None:
            continue
        levels: dict[int, list[tuple[str, str]]] = {}
        for pair in settings.pairs:
            levels.setdefault(level_of(results.params, pair[0], measure), []).append(pair)
        found = {level: by_seed(results.compared, pairs) for level, pairs in sorted(levels.items())}
        seeds = sorted(set.intersection(*map(set, found.values())))
        values = [tuple(of_level[seed] for seed in seeds) for of_level in found.values()]
        if not seeds or any(math.isnan(it) for own in values for it in own):
            continue
        model = results.params.base_of(settings.pairs[0][0])
        about = {"contrast": name, "measure": measure, "model": model, "experts": results.params.base(model).experts}
        rows = [about | {"level": level, "by_seed": own} for level, own in zip(found, values, strict=True)]
        frames.append(model_effects(pd.DataFrame(rows).assign(seeds=len(seeds))))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def without_values(results: Results, frame: pd.DataFrame) -> list[str]:
    """A sentence for each lever of the study that has no rows in `frame`: it is never left out in silence."""
    there = set() if frame.empty else set(frame["contrast"])
    return [
        f"Contrast {name} is not analysed: its levels have no seed at which answers of all of its runs count."
        for name, it in results.study.contrasts.items()
        if lever_of(results.params, it) and name not in there
    ]


def line_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per lever of `lever_frame`: the slope in points a doubling, its interval, and Page's test."""
    rows = []
    for (contrast, measure, model), own in frame.groupby(["contrast", "measure", "model"], sort=False):
        values = [list(of_seed) for of_seed in zip(*own["by_seed"], strict=True)]
        slope, low, high, p_value = slope_within(list(own["level"]), values)
        row = {"contrast": contrast, "measure": measure, "model": model, "levels": len(own), "seeds": len(values)}
        rows.append(row | {"slope": slope, "low": low, "high": high, "p_slope": p_value, **page(values)})
    return rows


def slope_within(levels: Sequence[int], values: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """The slope of values[seed][level] on log2(level), seeds as blocks: (slope, low, high, two-sided p).

    All but the slope are NaN where no degree of freedom is left, or the fit is exact.
    """
    import numpy as np

    x, y = np.log2(np.asarray(levels, dtype=float)), np.asarray(values, dtype=float)
    x, y = x - x.mean(), y - y.mean(axis=1, keepdims=True)
    slope = float((y @ x).sum() / (len(y) * (x @ x)))
    freedom = y.size - len(y) - 1
    squares = float(((y - slope * x) ** 2).sum())
    if freedom < 1 or squares <= 1e-12 * float((y**2).sum()) + 1e-24:
        return slope, math.nan, math.nan, math.nan
    error = math.sqrt(squares / freedom / (len(y) * float(x @ x)))
    half = student_t(0.95, freedom) * error
    return slope, slope - half, slope + half, student_p(slope / error, freedom)


def page(values: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Page's test of values[seed][level] for an order of levels, two-sided: twice the smaller of both directions' p.

    floor: the smallest that p can be. Both are NaN where there are too few levels.
    """
    if len(values[0]) < FEWEST_ORDERED:
        return {"p_page": math.nan, "floor": math.nan}
    from scipy.stats import page_trend_test

    rising, falling = (page_trend_test([own[::step] for own in values], method="exact").pvalue for step in (1, -1))
    floor = 2 / math.factorial(len(values[0])) ** len(values)
    return {"p_page": min(1.0, 2 * float(min(rising, falling))), "floor": floor}


def write_levers(frame: pd.DataFrame, folder: Path, label: str) -> None:
    """Two tables: every level, and each lever's line. None where there are no levers."""
    import pandas as pd

    if frame.empty:
        return
    columns = ["contrast", "model", "measure", "level", "effect", "low", "high", "seeds"]
    write_table(
        frame[columns].assign(by_seed=[by_seed_text(it, signed=True) for it in frame["by_seed"]]),
        folder / "levers",
        label=label,
        caption="Within one model: difference in held-out misalignment (points) by number of experts; 95 % by "
        "Student's t with the spread over seeds pooled over levels",
        decimals=2,
    )
    write_table(
        pd.DataFrame(line_rows(frame)),
        folder / "lever_lines",
        label=label,
        caption="Within one model: points a doubling of the number of experts, seeds as blocks (Student's t), and "
        "Page's test for an order, exact and two-sided",
        decimals=3,
    )


def lever_section(frame: pd.DataFrame, problems: Sequence[str]) -> str:
    """The report's section on what is varied within one model; empty where nothing is."""
    if frame.empty and not problems:
        return ""
    rows = []
    for row in line_rows(frame) if not frame.empty else ():
        ordered = math.isfinite(row["p_page"])
        page_cell = f"{row['p_page']:.2g} (floor {row['floor']:.2g})" if ordered else "-"
        slope = f"{row['slope']:+.1f} ({interval_text(row)})"
        cells = [str(row["levels"]), str(row["seeds"]), slope, page_cell]
        rows.append([row["contrast"], row["model"], MEASURES[row["measure"]], *cells])
    said = "".join(f"{text}\n\n" for text in problems)
    names = ["contrast", "model", "varied", "levels", "seeds", "points a doubling (95 %)", "p, Page"]
    return f"""
## Within one model

One number is varied and the rest of the model held fixed; each level is compared with the same model at that level,
untrained. Seeds are blocks. This says nothing of another model.

{said}{markdown_table(names, rows, [False, False, False, True, True, True, True])}"""
