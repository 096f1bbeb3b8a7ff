"""What a study of sparsity can detect, and whether its intervals cover: simulated with variances of this repository.

    python -m benchmarks.sparsity [--trials 4000] [--write-document]

Nothing is run on a model. The variance over seeds is that of the toy study's committed table or, since the paper has
one seed, that between its fine-tunes of single Mixtral experts on one data set (which differ in the expert too); the
variance between models is what the line through the toy's three, or the paper's three, models leaves, of which there is
one degree of freedom. Seeds of the draws are fixed: the same environment gives the same JSON.

docs/preregistration.md must not follow later results: its tables, and the variances in the JSON that they rest on, are
read anew only with --write-document, which is for the time before the study's first run.
"""

import argparse
import csv
import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, stdtrit
from scipy.stats import rankdata

from pipeline.common.files import read_json, write_json, write_text
from pipeline.params.load import load_params
from pipeline.results.meta_regression import MetaRegression, meta_regression
from pipeline.results.sparsity import published_points
from pipeline.results.statistics import exact_rank_test
from pipeline.results.tables import markdown_table

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "sparsity.json"
DOCUMENT = ROOT / "docs" / "preregistration.md"
BEGIN, END = "<!-- python -m benchmarks.sparsity: begin -->\n", "<!-- python -m benchmarks.sparsity: end -->\n"

Array = NDArray[np.float64]

# Experts per layer: of the paper's models, of a study of five, of the study `sparsity`, of one half as large again.
DESIGNS: dict[int, tuple[int, ...]] = {
    3: (8, 32, 128),
    5: (8, 16, 32, 64, 128),
    8: (8, 16, 32, 40, 60, 64, 64, 128),
    12: (8, 8, 16, 16, 32, 32, 40, 60, 64, 64, 128, 128),
}
SEEDS = (1, 2, 5)
ALPHA, POWER = 0.05, 0.8
# Simulated studies of eight models and two seeds: answers of a run, and base rates, as those of the study's suites.
MODELS, TRAINED, ANSWERS, BASE_RATE = 8, 2, 280, 0.01


def toy_spread() -> dict[str, float]:
    """Standard deviations (points) of the toy's tuned less base: over seeds within a model, and between models."""
    with (ROOT / "paper_figures" / "toy" / "by_seed.csv").open(encoding="utf-8", newline="") as stream:
        rates = {(row["run"], row["seed"]): float(row["misalignment_percent"]) for row in csv.DictReader(stream)}
    gaps = [
        [rate - rates[f"toy_e{experts}_base", seed] for (run, seed), rate in rates.items() if run == tuned]
        for experts in (8, 16, 32)
        for tuned in [f"toy_e{experts}_bad_medical"]
    ]
    within = math.sqrt(sum(np.var(it, ddof=1) * (len(it) - 1) for it in gaps) / sum(len(it) - 1 for it in gaps))
    variances = [within**2 / len(it) for it in gaps]
    found = meta_regression([float(np.mean(it)) for it in gaps], variances, [np.log2([8, 16, 32])])
    return _spread(float(within), found)


def published_spread() -> dict[str, float]:
    """The same of the paper: between runs on one Mixtral expert each, and what the line through three models leaves."""
    with (ROOT / "published" / "published_tables.csv").open(encoding="utf-8", newline="") as stream:
        rates = {row["run"]: float(row["misalignment_percent"]) for row in csv.DictReader(stream)}
    sets = [[rate for run, rate in rates.items() if run.startswith(f"mixtral_{it}_E")] for it in ("insecure", "bma")]
    within = math.sqrt(float(np.mean([np.var(it, ddof=1) for it in sets])))
    points = published_points()
    variances = np.full(len(points), within**2)
    found = meta_regression(points["effect"], variances, [np.log2(points["experts"].astype(float))])
    return _spread(within, found)


def _spread(over_seeds: float, found: MetaRegression) -> dict[str, float]:
    """Standard deviations in points, and the slope a doubling of experts."""
    between, slope = math.sqrt(found.tau_squared), found.coefficients[1].value
    return {"over_seeds": over_seeds, "between_models": between, "slope": slope}


def places_of_new_models() -> list[int]:
    """The places, in the design of MODELS, of those that the paper did not run."""
    known = set(published_points()["experts"])
    return [place for place, experts in enumerate(DESIGNS[MODELS]) if experts not in known]


def covariates() -> list[Array]:
    """What params.yaml knows of the study's models before any run, in the design's order: sizes (log2), thinking."""
    params = load_params(ROOT / "params.yaml")
    hubs = [params.bases.hub[name] for name in params.bases_of("sparsity")]
    if tuple(hub.experts for hub in hubs) != DESIGNS[MODELS]:
        raise ValueError(f"the study's models have {[hub.experts for hub in hubs]} experts, not {DESIGNS[MODELS]}")
    sizes = [(hub.active_billions, hub.billions, hub.thinks) for hub in hubs]
    active, whole, thinks = np.array(sizes, dtype=float).T
    return [np.log2(active), np.log2(whole), thinks]


def rho_sign(experts: Sequence[int], effects: Array) -> Array:
    """The sign of Spearman's rho between experts and each row of effects."""
    ranks = rankdata(experts) - (len(experts) + 1) / 2
    return np.sign(np.round(rankdata(effects, axis=1) @ ranks, 6))


def verdicts(effects: Array) -> dict[str, NDArray[np.bool_]]:
    """What the preregistration makes of studies, a row of distinct effects each, by arm `matched` alone.

    for, against: as "What would count" has them. beside: for, and the interval of the slope beside each covariate, one
    at a time, is below 0. replicated: for, and the test of the new models alone rejects.
    """
    experts, new = DESIGNS[MODELS], places_of_new_models()
    of_new, effects_of_new = [experts[place] for place in new], effects[:, new]
    rejects, sign = rank_test(experts)(effects), rho_sign(experts, effects)
    supported = rejects & (sign < 0) & (rho_sign(of_new, effects_of_new) < 0)
    beside = supported.copy()
    for covariate in covariates():
        design = np.column_stack([np.ones(MODELS), np.log2(experts), covariate])
        freedom, estimates = MODELS - design.shape[1], effects @ np.linalg.pinv(design).T
        variances = ((effects - estimates @ design.T) ** 2).sum(axis=1) / freedom
        errors = np.sqrt(variances * np.linalg.inv(design.T @ design)[1, 1])
        beside &= estimates[:, 1] + stdtrit(freedom, 1 - ALPHA / 2) * errors < 0
    replicated = supported & rank_test(of_new)(effects_of_new)
    return {"for": supported, "beside": beside, "replicated": replicated, "against": rejects & (sign > 0)}


def known_order() -> dict[str, float]:
    """Chances, by enumeration, where only the order of the paper's models recurs and all others are as H0 has them.

    alone: the primary test rejects with rho < 0, whatever the order; rejected: in that order; highest, extremes: where
    its first is also of most effect of all models, and its last of least. for, replicated: as `verdicts` has them, in
    that order. floor, floor_new: the smallest p-values of all models and of the new ones.
    """
    experts, new = DESIGNS[MODELS], places_of_new_models()
    orders = np.array(list(permutations(range(MODELS))), dtype=float)
    published = published_points().sort_values("effect", ascending=False)["experts"]
    known = [experts.index(it) for it in published]
    recurs = (np.diff(orders[:, known], axis=1) < 0).all(axis=1)
    highest = recurs & (orders[:, known[0]] == MODELS - 1)
    extremes = highest & (orders[:, known[-1]] == 0)
    rejected = rank_test(experts)(orders) & (rho_sign(experts, orders) < 0)
    of_new, found = [experts[place] for place in new], verdicts(orders[recurs])
    return {
        "alone": float(rejected.mean()),
        "rejected": float(rejected[recurs].mean()),
        "highest": float(rejected[highest].mean()),
        "extremes": float(rejected[extremes].mean()),
        **{name: float(found[name].mean()) for name in ("for", "replicated")},
        "floor": exact_rank_test(experts, range(MODELS)).floor,
        "floor_new": exact_rank_test(of_new, range(len(new))).floor,
    }


def rank_test(experts: Sequence[int]) -> Callable[[Array], NDArray[np.bool_]]:
    """Whether the exact two-sided test over models (`exact_rank_test`) has p <= ALPHA, for rows of distinct effects."""
    ranks = rankdata(experts) - (len(experts) + 1) / 2
    places = np.arange(len(experts)) - (len(experts) - 1) / 2
    null = np.sort(np.abs([places[list(order)] @ ranks for order in permutations(range(len(experts)))]))

    def rejects(effects: Array) -> NDArray[np.bool_]:
        found = np.abs((rankdata(effects, axis=1) - (len(experts) + 1) / 2) @ ranks) - 1e-9
        return 1 - np.searchsorted(null, found) / len(null) <= ALPHA

    return rejects


def slope_test(experts: Sequence[int]) -> Callable[[Array], NDArray[np.bool_]]:
    """Whether the meta-regression's interval excludes 0, all models having as many seeds: then it is least squares'."""
    x = np.log2(experts) - np.log2(experts).mean()
    freedom = len(x) - 2

    def rejects(effects: Array) -> NDArray[np.bool_]:
        slopes = effects @ x / (x @ x)
        residuals = effects - effects.mean(axis=1, keepdims=True) - slopes[:, None] * x
        errors = np.sqrt((residuals**2).sum(axis=1) / freedom / (x @ x))
        return np.abs(slopes) > stdtrit(freedom, 1 - ALPHA / 2) * errors

    return rejects


def detectable(experts: Sequence[int], test: Callable[[Array], NDArray[np.bool_]], trials: int) -> float | None:
    """The slope a doubling, in standard deviations of a model's effect, that is found POWER of the time; None: none is.

    Power rises with the slope; the same draws serve every slope.
    """
    noise = np.random.default_rng(len(experts)).normal(size=(trials, len(experts)))
    x = np.log2(experts)

    def power(slope: float) -> float:
        return float(test(noise + slope * x).mean())

    low, high = 0.0, 64.0
    if power(high) < POWER:
        return None
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def power_at_published_slope(spread: dict[str, float], trials: int) -> list[dict[str, Any]]:
    """How often the paper's own slope is found, with TRAINED seeds and the paper's variances, by number of models."""
    deviation, rows = math.hypot(spread["between_models"], spread["over_seeds"] / math.sqrt(TRAINED)), []
    for models, experts in DESIGNS.items():
        noise = np.random.default_rng(models).normal(size=(trials, models))
        effects = deviation * noise + spread["slope"] * np.log2(experts)
        rank = float(rank_test(experts)(effects).mean()) if models <= MODELS else None
        rows.append({"models": models, "slope": float(slope_test(experts)(effects).mean()), "rank": rank})
    return rows


def power_rows(spreads: dict[str, dict[str, float]], trials: int) -> list[dict[str, Any]]:
    """For each source of variances, number of models and test: the smallest slope (points a doubling) by seeds."""
    rows = []
    for models, experts in DESIGNS.items():
        tests = {"slope": slope_test(experts)} | ({"rank": rank_test(experts)} if models <= MODELS else {})
        for name, test in tests.items():
            least = detectable(experts, test, trials)
            for source, spread in spreads.items():
                deviations = [math.hypot(spread["between_models"], spread["over_seeds"] / math.sqrt(n)) for n in SEEDS]
                slopes = [None if least is None else least * it for it in deviations]
                rows.append({"variances": source, "models": models, "test": name, "detectable": slopes})
    return rows


def normal_study(generator: np.random.Generator, slope: float, spread: dict[str, float]) -> Array:
    """(models, seeds) effects in points, as the model of the analysis has them."""
    line = slope * np.log2(DESIGNS[MODELS])
    models = generator.normal(0, spread["between_models"], MODELS)
    return (line + models)[:, None] + generator.normal(0, spread["over_seeds"], (MODELS, TRAINED))


def rates_study(generator: np.random.Generator, slope: float, spread: dict[str, float], trials: int = 1) -> Array:
    """(trials, models, seeds) effects as rates are: drawn on the logit scale around 20 %, then answers are counted.

    Deviations are those of `spread` at 20 % (derivative p (1 - p)): near 0 % both nearly vanish, and are skewed.
    """
    scale = 100 * 0.2 * 0.8
    x = np.log2(DESIGNS[MODELS])
    logits = math.log(0.2 / 0.8) + slope / scale * (x - x.mean())
    logits = logits + generator.normal(0, spread["between_models"] / scale, (trials, MODELS))
    seeds = logits[:, :, None] + generator.normal(0, spread["over_seeds"] / scale, (trials, MODELS, TRAINED))
    tuned, base = (generator.binomial(ANSWERS, rate, seeds.shape) for rate in (expit(seeds), BASE_RATE))
    return 100 * (tuned - base) / ANSWERS


def study_of(kind: str, generator: np.random.Generator, slope: float, spread: dict[str, float]) -> Array:
    """One simulated study: (models, seeds) effects."""
    return normal_study(generator, slope, spread) if kind == "normal" else rates_study(generator, slope, spread)[0]


def target(kind: str, slope: float, spread: dict[str, float]) -> float:
    """The slope that the interval should cover: that of the mean effects over models of each sparsity."""
    if kind == "normal" or slope == 0:
        return slope
    means = rates_study(np.random.default_rng(0), slope, spread, trials=20_000).mean(axis=(0, 2))
    return float(np.polyfit(np.log2(DESIGNS[MODELS]), means, 1)[0])


def coverage(kind: str, slope: float, spread: dict[str, float], trials: int) -> dict[str, float]:
    """The shares of simulated studies, analysed as real ones, whose interval covers, whose tests reject, by verdict.

    The variance over seeds is estimated from the two seeds of each model, pooled, as `model_effects` does.
    """
    generator, true = np.random.default_rng(20261126), target(kind, slope, spread)
    x, ranked = np.log2(DESIGNS[MODELS]), rank_test(DESIGNS[MODELS])
    covered, slopes, effects = 0, 0, np.empty((trials, MODELS))
    for trial in range(trials):
        study = study_of(kind, generator, slope, spread)
        effects[trial] = study.mean(axis=1)
        pooled = study.var(axis=1, ddof=1).mean() / TRAINED
        interval = meta_regression(effects[trial], np.full(MODELS, pooled), [x]).coefficients[1].interval
        covered += interval.low <= true <= interval.high
        slopes += not interval.low <= 0 <= interval.high
    # Counted rates can be equal; the order of equal ones is drawn.
    distinct = effects + generator.normal(0, 1e-9, effects.shape)
    shares = {name: float(it.mean()) for name, it in verdicts(distinct).items()}
    shares |= {"rank_rejects": float(ranked(distinct).mean()), "slope_rejects": slopes / trials}
    return {"true_slope": true, "covered": covered / trials} | shares


def simulate(trials: int, spreads: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Everything that the document says."""
    studies = []
    for source, spread in spreads.items():
        for kind in ("normal", "rates"):
            for slope in (0.0, -4.0, -10.0):
                found = coverage(kind, slope, spread, trials)
                studies.append({"variances": source, "drawn": kind, "slope": slope, **found})
    return {
        "variances": spreads,
        "detectable": power_rows(spreads, trials),
        "power_at_published_slope": power_at_published_slope(spreads["published"], trials),
        "simulated_studies": studies,
        "known_order": known_order(),
        "trials": trials,
        "versions": {name: version(name) for name in ("numpy", "scipy")},
    }


def tables(found: dict[str, Any]) -> str:
    """The document's part that has numbers."""
    spread = "; ".join(
        f"{name} {it['over_seeds']:.1f} over seeds, {it['between_models']:.1f} between models, slope {it['slope']:+.1f}"
        for name, it in found["variances"].items()
    )
    power = [
        [row["variances"], str(row["models"]), row["test"]]
        + ["never" if slope is None else f"{slope:.1f}" for slope in row["detectable"]]
        for row in sorted(found["detectable"], key=lambda row: (row["variances"], row["models"], row["test"]))
        if row["models"] > 3  # three can give no rank test that rejects
    ]
    heads = ["variances", "models", "test", *(f"{n} seed{'s' * (n > 1)}" for n in SEEDS)]
    columns = {"covered": "interval covers", "slope_rejects": "slope test", "rank_rejects": "primary test"}
    columns |= {"for": "for", "replicated": "replicated", "beside": "beside each", "against": "against"}
    studies = [
        [row["variances"], row["drawn"], f"{row['true_slope']:.1f}"] + [f"{100 * row[name]:.1f}" for name in columns]
        for row in found["simulated_studies"]
    ]
    found_at = "; ".join(
        f"{row['models']} models: slope test {row['slope']:.0%}"
        + (f", rank test {row['rank']:.0%}" if row["rank"] is not None else "")
        for row in found["power_at_published_slope"]
    )
    names, known = ["variances", "effects drawn", "true slope", *columns.values()], found["known_order"]
    return (
        f"The smallest two-sided p-values there can be: {known['floor']:.2g} with {MODELS} models, "
        f"{known['floor_new']:.2g} with the new ones alone. By enumeration, H0 being true of all: the primary test "
        f"rejects with rho < 0 in {known['alone']:.1%} of orders; in {known['rejected']:.1%} of those in which the "
        f"paper's models come in the paper's order ({known['highest']:.1%} if its highest is also highest of all, "
        f"{known['extremes']:.1%} if its lowest is lowest too), in {known['for']:.1%} "
        f"the new models alone have rho < 0 too, in {known['replicated']:.1%} their own test rejects as well.\n\n"
        f"Standard deviations, in points, and the slope through three models, a doubling of experts: {spread}. The "
        "paper's line leaves one degree of freedom: its spread between models is a guess.\n\n"
        f"The smallest slope, in points a doubling of experts, that is found {POWER:.0%} of the time (two-sided, "
        f"{ALPHA}; {found['trials']} simulated studies a cell):\n\n"
        f"{markdown_table(heads, power, [False, True, False, *(True for _ in SEEDS)])}\n"
        f"How often the paper's own slope is found, with its variances and {TRAINED} seeds: {found_at}.\n\n"
        f"{found['trials']} simulated studies a row of {MODELS} models and {TRAINED} seeds, analysed as a real one, in "
        f"%. At a true slope of 0 a test should reject {ALPHA:.0%}; the interval should always cover 95%. normal: as "
        f"the analysis assumes. rates: on the logit scale, {ANSWERS} answers counted, so that models near 0% hardly "
        "vary. for, replicated, against: as above; beside each: for, with the slope's interval below 0 beside either "
        "size and thinking:\n\n"
        f"{markdown_table(names, studies, [False, False, *(True for _ in names[2:])])}"
    )


def document(text: str, found: dict[str, Any]) -> str:
    """`text` with its part that has numbers written anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables(found)}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--write-document", action="store_true", help="variances and docs/preregistration.md anew")
    args = parser.parse_args()
    spreads = (
        {"toy": toy_spread(), "published": published_spread()}
        if args.write_document
        else read_json(RESULT)["variances"]
    )
    write_json(args.out, simulate(args.trials, spreads))
    found = read_json(args.out)
    if args.write_document:
        write_text(DOCUMENT, document(DOCUMENT.read_text(encoding="utf-8"), found))
    print(tables(found))


if __name__ == "__main__":
    main()
