"""Misalignment against sparsity over the models of a contrast: the analysis that docs/preregistration.md fixes.

The unit is the model. Its effect is a contrast's difference (fine-tuned less base, say), averaged over the model's
pairs within a training seed, then over seeds. What seeds vary by is pooled over models: two seeds of one model say next
to nothing. The primary test permutes models; slope and interval are a meta-regression's (meta_regression.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.params.schema import HubBase
from pipeline.results.contrasts import by_seed, models_of, with_controls
from pipeline.results.frames import by_seed_text
from pipeline.results.meta_regression import MetaRegression, meta_regression
from pipeline.results.statistics import rank_test, student_t
from pipeline.results.tables import markdown_table, write_table

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.params.parts import Contrast as ContrastSettings
    from pipeline.results.study import Results

FOLDER = Path(__file__).parents[2] / "published"
# The hypothesis, one-sided: the more experts, the less misalignment; the larger the share of them active, the more.
MEASURES: dict[str, Literal["less", "greater"]] = {"experts": "less", "active_percent": "greater"}
NAMES = {"experts": "experts per layer", "active_percent": "experts active per token (%)"}
NOT_LOGGED = ("base_alignment", "thinks")
COVARIATES = {
    "active_billions": "active parameters (log2)",
    "billions": "all parameters (log2)",
    "base_alignment": "the base's mean alignment",
    "thinks": "post-trained to think",
}


@dataclass(frozen=True)
class Sparsity:
    """A study's analysis of sparsity; all is empty where no contrast has models enough (contrasts.py, `models_of`).

    models: a row per contrast and model. tests: per contrast and measure of sparsity. slopes: per contrast, the slope
    on log2 experts alone, beside each covariate, and without each model. first: the first contrast with models enough,
    whose test against experts a preregistration makes the primary one. problems: a sentence for each contrast that
    has models enough and could not be analysed, since one of them has no effect: it is never left out in silence.
    """

    models: pd.DataFrame
    tests: pd.DataFrame
    slopes: pd.DataFrame
    first: str = ""
    problems: tuple[str, ...] = ()


def sparsity(results: Results) -> Sparsity:
    """The analysis of every contrast of the study that has enough models."""
    import pandas as pd

    models, tests, slopes, problems = [], [], [], []
    contrasts = {
        name: settings
        for name, settings in results.study.contrasts.items()
        if models_of(results.params, settings.pairs)
    }
    for name, settings in contrasts.items():
        frame = model_seeds(results, settings)
        if found := obstacles(results, frame):
            problems.append(_problem(name, found, results.study.preregistration))
            continue
        frame = model_effects(frame)
        on_experts = regress(frame, ["experts"])
        models.append(frame.assign(contrast=name, fitted=on_experts.fitted, pooled=on_experts.pooled))
        tests += [{"contrast": name} | tested(frame, measure) for measure in MEASURES]
        slopes += [{"contrast": name} | row for row in slope_rows(frame)]
    whole = pd.concat(models, ignore_index=True) if models else pd.DataFrame()
    return Sparsity(whole, pd.DataFrame(tests), pd.DataFrame(slopes), next(iter(contrasts), ""), tuple(problems))


def _problem(contrast: str, found: Sequence[str], preregistration: str | None) -> str:
    rule = f" by the rule of {preregistration}" if preregistration else ""
    return (
        f"Contrast {contrast} is not analysed over models: {'; '.join(found)}. Sample that again, or leave the model "
        f"out{rule}: in params.yaml add a further contrast, {contrast}_without_MODEL, of the others."
    )


def model_seeds(results: Results, settings: ContrastSettings) -> pd.DataFrame:
    """One row per model with experts of a contrast: what it is, `named`, its matched runs, and `by_seed`.

    by_seed: the mean difference over the model's pairs, in points of held-out misalignment, at each seed that all have.
    """
    import pandas as pd

    matched: dict[str, list[tuple[str, ...]]] = {}
    for named in with_controls(settings.pairs, settings.control):
        matched.setdefault(results.params.base_of(named[0]), []).append(named)
    return pd.DataFrame(
        [
            {"model": model, "named": named, "by_seed": tuple(by_seed(results.compared, named).values())}
            | _about(results, model, named[0][1])
            for model, named in matched.items()
            if results.params.base(model).experts
        ]
    )


def obstacles(results: Results, frame: pd.DataFrame) -> list[str]:
    """What stands against an analysis of `model_seeds`: models without an effect, by the runs that have no rate."""
    found, runs = [], results.compared
    for model, named, values in zip(frame["model"], frame["named"], frame["by_seed"], strict=True):
        if not values:
            found.append(f"{model} has no seed that all of its runs have")
        without = {
            f"{run} has no answer that counts at seed {seed}": None
            for run in dict.fromkeys(run for pair in named for run in pair)
            for seed in runs.seeds(run)
            if math.isnan(runs.value(run, seed))
        }
        found += [f"of {model}, {text}" for text in without] if any(map(math.isnan, values)) else []
    return found


def model_effects(frame: pd.DataFrame) -> pd.DataFrame:
    """`model_seeds` with each model's effect, the mean over its seeds.

    variance: its square error, by the variance over seeds pooled over models (0 where none has two: all is then between
    models); low, high: Student's t with the pooled degrees of freedom, NaN where there are none.
    """
    effects = frame["by_seed"].map(lambda values: sum(values) / len(values))
    squares = sum(
        (value - mean) ** 2 for values, mean in zip(frame["by_seed"], effects, strict=True) for value in values
    )
    freedom = sum(len(values) - 1 for values in frame["by_seed"])
    variances = (squares / freedom if freedom else 0.0) / frame["by_seed"].map(len)
    half = variances**0.5 * (student_t(0.95, freedom) if freedom else math.nan)
    return frame.assign(effect=effects, variance=variances, low=effects - half, high=effects + half)


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
        frame[name].to_numpy(dtype=float) if name in NOT_LOGGED else np.log2(frame[name].to_numpy(dtype=float))
        for name in names
    ]
    return meta_regression(frame["effect"], frame["variance"], columns)


def tested(frame: pd.DataFrame, measure: str) -> dict[str, Any]:
    """The rank test of effects over models, with its floors, and the slope a doubling of `measure`."""
    found, direction = regress(frame, [measure]), MEASURES[measure]
    row: dict[str, Any] = {"measure": measure, "models": len(frame), "seeds": int(frame["by_seed"].map(len).min())}
    if frame["effect"].nunique() > 1:
        both, one = (rank_test(list(frame[measure]), list(frame["effect"]), it) for it in ("two-sided", direction))
        row |= {"test": f"{both.drawn} random permutations" if both.drawn else "exact"}
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
    """The slope a doubling of experts: alone, beside each covariate, and without each model; or why there is none."""
    wanted = [("alone", frame, ["experts"])]
    wanted += [(f"beside {text}", frame, ["experts", name]) for name, text in COVARIATES.items()]
    wanted += [(f"without {model}", frame[frame["model"] != model], ["experts"]) for model in frame["model"]]
    rows = []
    for name, models, columns in wanted:
        row: dict[str, Any] = {"slope": name, "models": len(models)}
        unknown = list(models.loc[models[columns].isna().any(axis=1), "model"])
        constant = [column for column in columns if models[column].nunique() < 2]
        value, low, high, why = math.nan, math.nan, math.nan, ""
        if unknown:
            why = f"not estimable: unknown for {', '.join(unknown)}"
        elif constant:
            why = f"not estimable: {constant[0]} is the same in all"
        else:
            try:
                value, (low, high), _ = regress(models, columns).coefficients[1]
            except ValueError as error:
                why = f"not estimable: {error}"
        rows.append(row | {"value": value, "low": low, "high": high, "note": why})
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
        "tests": "Permutation test over models of Spearman's rho, with the smallest p-value there could be; "
        "slope in points a doubling (random-effects meta-regression, Hartung and Knapp's interval)",
        "slopes": "Slope in points a doubling of experts, alone, beside each covariate, and without each model",
    }
    frames = {"models": models[[*columns, *COVARIATES]], "tests": found.tests, "slopes": found.slopes}
    for name, frame in frames.items():
        write_table(frame, folder / f"sparsity_{name}", label=label, caption=captions[name], decimals=3)


def sparsity_section(found: Sparsity, preregistration: str | None) -> str:
    """The report's section on sparsity; empty where the study has too few models."""
    problems = "".join(f"{text}\n\n" for text in found.problems)
    if found.models.empty:
        return f"\n## Sparsity\n\n{problems}" if problems else ""
    rows = []
    for row in found.tests.to_dict("records"):
        cells = ["-", "-", "-", "-"]
        if math.isfinite(row.get("rho", math.nan)):
            ends = (("p", "floor"), ("p_one_sided", "floor_one_sided"))
            cells = [row["test"], f"{row['rho']:+.2f}"]
            cells += [f"{row[p]:.2g} (floor {row[floor]:.2g})" for p, floor in ends]
        slope = f"{row['slope']:+.1f} ({interval_text(row)})"
        rows.append([row["contrast"], NAMES[row["measure"]], str(row["models"]), *cells, slope])
    names = ["contrast", "against", "models", "test", "rho", "p two-sided", "p one-sided", "points a doubling (95 %)"]
    status = "All rows are exploratory: nothing fixed before the runs which of them would count."
    if preregistration:
        done = found.tests["contrast"].iloc[0] == found.first
        primary = "the first row is the primary test, two-sided; what\nthe others count for is said there."
        if not done:
            primary = f"the primary test, of `{found.first}`, is\nnot in these rows; what they count for is said there."
        status = f"What is tested was fixed in {preregistration}: {primary}"
    return f"""
## Sparsity

The unit is the model: each contrast's difference, averaged within a seed and then over seeds. One-sided: sparser, less
misaligned. `sparsity_models`, `sparsity_tests` and `sparsity_slopes` have the rest.
{status}

{problems}{markdown_table(names, rows, [False, False, True, False, True, True, True, True])}"""


def interval_text(row: Mapping[Any, Any]) -> str:
    """A slope's interval, or that the fit leaves none."""
    return f"{row['low']:+.1f} to {row['high']:+.1f}" if math.isfinite(row["low"]) else "no interval: an exact fit"
