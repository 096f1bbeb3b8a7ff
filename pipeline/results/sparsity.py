"""Misalignment against sparsity over the models of a contrast: the analysis that docs/preregistration.md fixes.

The unit is the model. Its effect is a contrast's difference (fine-tuned less base, say), averaged over the model's
pairs within a training seed, then over seeds. What seeds vary by is pooled over models: two seeds of one model say next
to nothing. The primary test permutes models; slope and interval are a meta-regression's (meta_regression.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.params.schema import HubBase
from pipeline.results.frames import by_seed_text
from pipeline.results.meta_regression import MetaRegression, meta_regression
from pipeline.results.statistics import exact_rank_test, student_t
from pipeline.results.tables import markdown_table, write_table

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.params.parts import Contrast as ContrastSettings
    from pipeline.results.study import Results

# Four models have no exact two-sided p-value below 2 / 4! = 0.083, five 0.017. More than nine are not enumerated.
FEWEST, MOST = 5, 9
FOLDER = Path(__file__).parents[2] / "published"
# The hypothesis, one-sided: the more experts, the less misalignment; the larger the share of them active, the more.
MEASURES: dict[str, Literal["less", "greater"]] = {"experts": "less", "active_percent": "greater"}
NAMES = {"experts": "experts per layer", "active_percent": "experts active per token (%)"}
AS_IT_IS = ("base_alignment", "thinks")
COVARIATES = {
    "active_billions": "active parameters (log2)",
    "billions": "all parameters (log2)",
    "base_alignment": "the base's mean alignment",
    "thinks": "post-trained to think",
}


@dataclass(frozen=True)
class Sparsity:
    """A study's analysis of sparsity; three empty frames where no contrast has FEWEST models of different sparsity.

    models: a row per contrast and model. tests: per contrast and measure of sparsity. slopes: per contrast, the slope
    on log2 experts alone, beside each covariate, and without each model.
    """

    models: pd.DataFrame
    tests: pd.DataFrame
    slopes: pd.DataFrame


def sparsity(results: Results) -> Sparsity:
    """The analysis of every contrast of the study that has enough models."""
    import pandas as pd

    models, tests, slopes = [], [], []
    for name, settings in results.study.contrasts.items():
        frame = model_effects(results, settings)
        if len(frame) < FEWEST or min(frame[measure].nunique() for measure in MEASURES) < 2:
            continue
        on_experts = regress(frame, ["experts"])
        models.append(frame.assign(contrast=name, fitted=on_experts.fitted, pooled=on_experts.pooled))
        tests += [{"contrast": name} | test_of(frame, measure) for measure in MEASURES]
        slopes += [{"contrast": name} | row for row in slope_rows(frame)]
    whole = pd.concat(models, ignore_index=True) if models else pd.DataFrame()
    return Sparsity(whole, pd.DataFrame(tests), pd.DataFrame(slopes))


def model_effects(results: Results, settings: ContrastSettings) -> pd.DataFrame:
    """One row per model with experts of a contrast, in percentage points of held-out misalignment.

    by_seed: the mean over the model's pairs at each seed that all of them have. effect: the mean of those; variance:
    its square error, by the variance over seeds pooled over models (0 where none has two: all is then between models);
    low, high: Student's t with the pooled degrees of freedom, NaN where there are none.
    """
    import pandas as pd

    matched: dict[str, list[tuple[str, ...]]] = {}
    one_for_all = settings.control if len(settings.control) == 1 else ()
    for place, pair in enumerate(settings.pairs):
        control = settings.control[place] if len(settings.control) == len(settings.pairs) else ()
        named = (*pair, *(control or (one_for_all[0] if one_for_all else ())))
        matched.setdefault(results.params.base_of(pair[0]), []).append(named)
    rows = [
        {"model": model, "by_seed": by_seed(results, pairs)} | _about(results, model, pairs[0][1])
        for model, pairs in matched.items()
    ]
    frame = pd.DataFrame([row for row in rows if row["experts"] and row["by_seed"]])
    if frame.empty:
        return frame
    effects = frame["by_seed"].map(lambda values: sum(values) / len(values))
    squares = sum(
        (value - mean) ** 2 for values, mean in zip(frame["by_seed"], effects, strict=True) for value in values
    )
    freedom = sum(len(values) - 1 for values in frame["by_seed"])
    variances = (squares / freedom if freedom else 0.0) / frame["by_seed"].map(len)
    half = variances**0.5 * (student_t(0.95, freedom) if freedom else math.nan)
    return frame.assign(effect=effects, variance=variances, low=effects - half, high=effects + half)


def by_seed(results: Results, pairs: Sequence[tuple[str, ...]]) -> tuple[float, ...]:
    """The mean difference of pairs (tuned, base), or (tuned, base, control's tuned, its base), seed by seed."""
    runs = results.compared
    seeds = sorted(set.intersection(*(set(runs.seeds(run)) for pair in pairs for run in pair)))
    means = []
    for seed in seeds:
        gaps = [
            runs.gap((one, other), seed) - (runs.gap((control[0], control[1]), seed) if control else 0.0)
            for one, other, *control in pairs
        ]
        means.append(sum(gaps) / len(gaps))
    return tuple(means)


def _about(results: Results, model: str, untuned: str) -> dict[str, Any]:
    """What a model is, beside its effect; `untuned` is the run that its first pair compares with."""
    base = results.params.base(model)
    alignment = results.per_seed.groupby("run")["mean_alignment"].mean()
    hub = base if isinstance(base, HubBase) else None
    return {
        "experts": base.experts,
        "active": base.active,
        "active_percent": 100 * base.active / base.experts if base.experts else math.nan,
        "billions": hub.billions if hub else None,
        "active_billions": hub.active_billions if hub else None,
        "thinks": hub.thinks if hub else None,
        "base_alignment": float(alignment[results.base_of(untuned)]),
    }


def regress(frame: pd.DataFrame, names: Sequence[str]) -> MetaRegression:
    """The meta-regression of the models' effects on columns of the frame: of sizes the log2, of others as they are."""
    import numpy as np

    columns = [
        frame[name].to_numpy(dtype=float) if name in AS_IT_IS else np.log2(frame[name].to_numpy(dtype=float))
        for name in names
    ]
    return meta_regression(frame["effect"], frame["variance"], columns)


def test_of(frame: pd.DataFrame, measure: str) -> dict[str, Any]:
    """The exact rank test of effects over models, with its floors, and the slope a doubling of `measure`."""
    found, direction = regress(frame, [measure]), MEASURES[measure]
    row: dict[str, Any] = {"measure": measure, "models": len(frame), "seeds": int(frame["by_seed"].map(len).min())}
    if len(frame) <= MOST and frame["effect"].nunique() > 1:
        both = exact_rank_test(frame[measure], frame["effect"])
        one = exact_rank_test(frame[measure], frame["effect"], direction)
        row |= {"rho": both.rho, "p": both.p_value, "floor": both.floor}
        row |= {"direction": direction, "p_one_sided": one.p_value, "floor_one_sided": one.floor}
    slope = found.coefficients[1]
    return row | {
        "slope": slope.value,
        "low": slope.interval.low,
        "high": slope.interval.high,
        "p_slope": slope.p_value,
        "between_models": math.sqrt(found.tau_squared),
        "over_seeds": math.sqrt(float((frame["variance"] * frame["by_seed"].map(len)).iloc[0])),
    }


def slope_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The slope a doubling of experts: alone, beside each covariate that there is, and without each model."""
    kept = [("alone", frame, ["experts"])]
    kept += [
        (f"beside {text}", frame, ["experts", name])
        for name, text in COVARIATES.items()
        if frame[name].notna().all() and frame[name].nunique() > 1
    ]
    kept += [(f"without {model}", frame[frame["model"] != model], ["experts"]) for model in frame["model"]]
    rows = []
    for name, models, columns in kept:
        if models["experts"].nunique() < 2:
            continue
        slope = regress(models, columns).coefficients[1]
        low, high = slope.interval
        rows.append({"slope": name, "models": len(models), "value": slope.value, "low": low, "high": high})
    return rows


def published_points() -> pd.DataFrame:
    """The paper's headline: per model, fine-tuned less base misalignment (points, by its own definition).

    The headline table names no run; each is the insecure one of the model whose mean alignment the table prints.
    """
    import pandas as pd

    tables = {name: pd.read_csv(FOLDER / f"{name}.csv") for name in ("headline_table", "models", "notebook_results")}
    runs = tables["notebook_results"].merge(pd.read_csv(FOLDER / "runs.csv"), on="run").set_index("run")
    rows = []
    for model, headline in tables["models"].merge(tables["headline_table"], on="model").groupby("model", sort=False):
        row = headline.iloc[0]
        insecure = runs[(runs["model"] == model) & (runs["dataset"] == "insecure")]
        tuned = insecure[insecure["avg_alignment"].round(2) == row["avg_alignment_insecure_ft"]].iloc[0]
        rise = 100 * (tuned["misalignment_rate"] - runs.loc[row["base_run"], "misalignment_rate"])
        rows.append({"model": model, "experts": row["experts"], "active": row["active"], "effect": rise})
    return pd.DataFrame(rows).assign(active_percent=lambda it: 100 * it["active"] / it["experts"])


def write_sparsity(found: Sparsity, folder: Path, label: str) -> None:
    """The analysis as three tables: models, tests, slopes."""
    if found.models.empty:
        return
    models = found.models.assign(by_seed=[by_seed_text(it, signed=True) for it in found.models["by_seed"]])
    columns = ["contrast", "model", "experts", "active", "effect", "low", "high", "by_seed", "fitted", "pooled"]
    captions = {
        "models": "Each model's difference in held-out misalignment (points): mean over seeds, 95 % by Student's t "
        "with the spread over seeds pooled over models; `fitted` on log2 experts, `pooled` drawn towards it",
        "tests": "Exact permutation test over models of Spearman's rho, with the smallest p-value there could be; "
        "slope in points a doubling (random-effects meta-regression, Hartung and Knapp's interval)",
        "slopes": "Slope in points a doubling of experts, alone, beside each covariate, and without each model",
    }
    frames = {"models": models[[*columns, *COVARIATES]], "tests": found.tests, "slopes": found.slopes}
    for name, frame in frames.items():
        write_table(frame, folder / f"sparsity_{name}", label=label, caption=captions[name], decimals=3)


def sparsity_section(found: Sparsity, preregistration: str | None) -> str:
    """The report's section on sparsity; empty where the study has too few models."""
    if found.models.empty:
        return ""
    rows = []
    for row in found.tests.to_dict("records"):
        tested = ["-", "-", "-"]
        if math.isfinite(row.get("rho", math.nan)):
            ends = (("p", "floor"), ("p_one_sided", "floor_one_sided"))
            tested = [f"{row['rho']:+.2f}", *(f"{row[p]:.2g} (floor {row[floor]:.2g})" for p, floor in ends)]
        slope = f"{row['slope']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})"
        rows.append([row["contrast"], NAMES[row["measure"]], str(row["models"]), *tested, slope])
    names = ["contrast", "against", "models", "rho", "p two-sided", "p one-sided", "points a doubling (95 %)"]
    fixed = f"\nWhat is tested was fixed in {preregistration}." if preregistration else ""
    return f"""
## Sparsity

The unit is the model: each contrast's difference, averaged within a seed and then over seeds. The first row is the
primary test, two-sided; all others are secondary. One-sided: sparser, less misaligned. `sparsity_models`,
`sparsity_tests` and `sparsity_slopes` have the rest.{fixed}

{markdown_table(names, rows, [False, False, True, True, True, True, True])}"""
