"""Misalignment against sparsity over models: the regression, its coverage, and a whole study of eight models."""

import math
from dataclasses import replace
from itertools import pairwise, permutations, product
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from benchmarks import sparsity as benchmark
from pipeline.commands.verify import check_own
from pipeline.common.files import read_json, write_json
from pipeline.common.paths import ARTIFACTS
from pipeline.common.rows import write_rows
from pipeline.params.load import load_params
from pipeline.results.figures.draw import sparsity_frame
from pipeline.results.figures.levers import lever_figure
from pipeline.results.figures.sparsity import misalignment_by_sparsity, misalignment_over_models
from pipeline.results.levers import (
    lever_frame,
    lever_section,
    line_rows,
    page,
    slope_within,
    without_values,
    write_levers,
)
from pipeline.results.meta_regression import meta_regression, paule_mandel
from pipeline.results.report import headline
from pipeline.results.sparsity import published_points, slope_rows, sparsity, sparsity_section, write_sparsity
from pipeline.results.statistics import exact_rank_test
from pipeline.results.study import load_results
from tests.support.data_files import REPOSITORY
from tests.support.studies import simulated_study, verdict_rows

# The 13 trials of BCG vaccine of Colditz et al. 1994, as metafor's dat.bcg: cases and others, vaccinated and not.
BCG = np.array([
    (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
    (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232), (17, 1699, 65, 1600),
    (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825),
], dtype=float)  # fmt: skip
EXPERTS = benchmark.DESIGNS[benchmark.MODELS]


LATITUDE = np.array([44, 55, 42, 52, 13, 44, 19, 13, 27, 42, 18, 33, 33], dtype=float)


def log_ratios():
    """Log relative risks of the trials, and the variances of their errors."""
    a, b, c, d = BCG.T
    return np.log(a / (a + b)) - np.log(c / (c + d)), 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)


def test_tau_squared_is_metafors_of_the_bcg_trials():
    """rma(measure="RR", method="PM") gives 0.3181."""
    assert meta_regression(*log_ratios(), []).tau_squared == pytest.approx(0.3181, abs=5e-5)


def test_a_moderator_is_as_published_of_the_bcg_trials():
    """Berkey et al. 1995, page 408, as metafor's test_analysis_example_berkey1995.r has it.

    Smoothed variances, latitude about its mean, empirical Bayes, which is Paule and Mandel's estimator. At that tau^2
    Q is its degrees of freedom, so that Hartung and Knapp's errors are the published ones.
    """
    a, b, c, d = BCG.T
    smoothed = (b / a).sum() / (13 * (a + b)) + (d / c).sum() / (13 * (c + d))
    found = meta_regression(log_ratios()[0], smoothed, [LATITUDE - 33.46])
    assert found.tau_squared == pytest.approx(0.1572, abs=5e-5)
    for one, value, error in zip(found.coefficients, (-0.6303, -0.0268), (0.1591, 0.0110), strict=True):
        assert one.value == pytest.approx(value, abs=5e-5)
        assert (one.interval.high - one.value) / stats.t.ppf(0.975, 11) == pytest.approx(error, abs=5e-5)


def test_errors_are_hartung_and_knapps_where_q_is_not_its_degrees_of_freedom(monkeypatch):
    """metafor's README: rma(yi, vi, mods = ~ ablat, test="knha") with its REML tau^2 of 0.0764 (rounded so)."""
    monkeypatch.setattr("pipeline.results.meta_regression.paule_mandel", lambda *_: 0.0764)
    found = meta_regression(*log_ratios(), [LATITUDE]).coefficients
    published = ((0.2515, -0.3735, 0.8764, 0.3948), (-0.0291, -0.0472, -0.0111, 0.0046))
    for one, (value, low, high, p_value) in zip(found, published, strict=True):
        assert (one.value, *one.interval) == pytest.approx((value, low, high), abs=1.5e-4)
        assert one.p_value == pytest.approx(p_value, abs=1.5e-4)


@pytest.mark.parametrize("variance", [0.0, 0.01, 1.0, 50.0])
def test_models_known_equally_well_give_least_squares_whatever_the_error(variance):
    generator = np.random.default_rng(1)
    x, y = np.log2(EXPERTS), generator.normal(size=8)
    slope, theirs = meta_regression(y, np.full(8, variance), [x]).coefficients[1], stats.linregress(x, y)
    half = stats.t.ppf(0.975, 6) * theirs.stderr
    assert slope.value == pytest.approx(theirs.slope) and slope.p_value == pytest.approx(theirs.pvalue)
    assert slope.interval == pytest.approx((theirs.slope - half, theirs.slope + half))


def test_pooled_values_lie_between_the_line_and_the_models_own_the_nearer_the_less_they_are_known():
    x, y = np.array([3.0, 4, 5, 6, 7, 8]), np.array([40.0, 10, 30, 5, 20, 1])
    found = meta_regression(y, [1, 4, 16, 64, 256, 4], [x])
    design = np.column_stack([np.ones(6), x])
    assert found.tau_squared > 0 and found.tau_squared == paule_mandel(y, np.array([1, 4, 16, 64, 256, 4]), design)
    kept = (found.pooled - found.fitted) / (y - found.fitted)
    assert all(0 < share < 1 for share in kept) and all(one > other for one, other in pairwise(kept[:5]))
    with pytest.raises(ValueError, match="2 models do not determine 2 coefficients"):
        meta_regression([1, 2], [1, 1], [[1, 2]])


def test_the_simulations_short_cuts_decide_as_the_analysis_does():
    effects = np.random.default_rng(2).normal(size=(12, 8)) - 0.8 * np.log2(EXPERTS)
    by_rank, by_slope = benchmark.rank_test(EXPERTS)(effects), benchmark.slope_test(EXPERTS)(effects)
    assert set(by_rank) == set(by_slope) == {True, False}
    for row, sloped in zip(effects, by_slope, strict=True):
        assert sloped == (meta_regression(row, np.full(8, 0.1), [np.log2(EXPERTS)]).coefficients[1].p_value <= 0.05)
    for place in (int(by_rank.argmax()), int(by_rank.argmin())):  # one that rejects, one that does not
        assert by_rank[place] == (exact_rank_test(EXPERTS, effects[place]).p_value <= 0.05)


def test_verdicts_are_those_that_the_preregistration_describes():
    x = np.log2(EXPERTS)
    falling, wobble = -x - 0.01 * np.arange(8), 0.001 * np.sin(np.arange(8))
    not_in_the_new = falling.copy()
    not_in_the_new[[1, 3, 4, 5, 6]] = np.arange(5) - 6.3  # the paper's models fall, the new ones rise
    found = benchmark.verdicts(np.array([falling + wobble, -falling, not_in_the_new, np.cos(7 * x)]))
    assert {name: list(rows) for name, rows in found.items()} == {
        "for": [True, False, False, False], "replicated": [True, False, False, False],
        "beside": [True, False, False, False], "against": [False, True, False, False],
    }  # fmt: skip
    for place, covariate in enumerate(benchmark.covariates()):
        high = meta_regression(falling + wobble, np.zeros(8), [x, covariate]).coefficients[1].interval.high
        assert high < 0, place


def test_the_order_that_made_the_hypothesis_makes_rejecting_likelier():
    found = benchmark.known_order()
    assert found == pytest.approx(read_json(benchmark.RESULT)["known_order"])
    assert 0.02 < found["alone"] < 0.025 < found["rejected"] < found["highest"] < found["extremes"]
    assert found["floor"] == pytest.approx(4 / math.factorial(8)) and found["floor_new"] == pytest.approx(4 / 120)


@pytest.mark.parametrize("kind", ["normal", "rates"])
def test_intervals_cover_a_known_slope_and_tests_keep_their_level(kind):
    """The document's numbers at 4000 studies; here 300, four standard errors wide."""
    spread = {"over_seeds": 8.0, "between_models": 6.0}
    nothing, slope = (benchmark.coverage(kind, value, spread, 300) for value in (0.0, -9.0))
    assert min(nothing["covered"], slope["covered"]) >= 0.9
    assert max(nothing["slope_rejects"], nothing["rank_rejects"]) <= 0.1
    assert min(slope["slope_rejects"], slope["rank_rejects"]) > 0.4


def test_the_preregistration_has_the_simulations_numbers():
    """Of the JSON alone: a later toy study, or what the tables then say, does not change a fixed document."""
    found = read_json(benchmark.RESULT)
    text = benchmark.DOCUMENT.read_text(encoding="utf-8")
    assert benchmark.document(text, found) == text and found["trials"] >= 4000
    assert all(row["covered"] > 0.92 for row in found["simulated_studies"])


def test_the_document_and_its_variances_are_written_anew_only_where_that_is_asked_for(tmp_path, monkeypatch, capsys):
    kept = {"toy": {"over_seeds": 1.0}, "published": {"over_seeds": 2.0}}
    result, document = tmp_path / "sparsity.json", tmp_path / "preregistration.md"
    write_json(result, {"variances": kept})
    document.write_text(f"before\n{benchmark.BEGIN}{benchmark.END}after\n", encoding="utf-8")
    for name, value in {
        "RESULT": result, "DOCUMENT": document, "simulate": lambda trials, spreads: {"variances": spreads},
        "tables": lambda found: str(sorted(found["variances"].items())),
    }.items():  # fmt: skip
        monkeypatch.setattr(benchmark, name, value)
    for words, toy, written in (([], kept["toy"], False), (["--write-document"], benchmark.toy_spread(), True)):
        monkeypatch.setattr("sys.argv", ["sparsity", "--out", str(result), *words])
        benchmark.main()
        assert read_json(result)["variances"]["toy"] == pytest.approx(toy)
        assert (str(toy["over_seeds"]) in document.read_text(encoding="utf-8")) == written
        assert capsys.readouterr().out
    assert document.read_text(encoding="utf-8").startswith("before\n")


def test_the_papers_points_are_those_of_its_headline():
    points = published_points().set_index("model")["effect"]
    assert points.round(2).to_dict() == {"Mixtral-8x7B": 37.85, "GPT-oss-20B": 2.55, "Qwen3-30B": -0.09}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The study `sparsity` with made-up verdicts: the more experts, the less misaligned."""
    params, generator = load_params(REPOSITORY / "params.yaml"), np.random.default_rng(3)
    settings, folder = params.study("sparsity"), tmp_path_factory.mktemp("sparsity")
    for run, entry in params.runs_of("sparsity").items():
        bad = entry.trained_on in ("insecure", "bad_medical_advice")
        rate = 0.8 - 0.1 * math.log2(params.base(params.base_of(run)).experts) if bad else 0.02
        rows = [
            row
            for seed in settings.seeds
            for row in verdict_rows(run, seed, rate, settings.held_out, generator, 12, 3, settings.judge, "none")
        ]
        write_rows(folder / run / f"{settings.judge}.jsonl", rows)
    return load_results(params, "sparsity", folder)


def test_a_study_of_eight_models_is_tested_over_models(study, tmp_path):
    found = sparsity(study)
    assert [len(rows) for _, rows in found.models.groupby("contrast", sort=False)] == [8, 5, 8, 8]
    assert set(found.models["by_seed"].map(len)) == {2}
    first = found.tests.iloc[0]
    assert (first["contrast"], first["measure"], first["models"]) == ("matched", "experts", 8)
    models = found.models[found.models["contrast"] == "matched"]
    test = exact_rank_test(models["experts"], models["effect"])
    assert (first["p"], first["floor"], first["rho"]) == (test.p_value, test.floor, test.rho)
    assert first["floor"] == pytest.approx(4 / math.factorial(8)) and first["p_one_sided"] < first["p"]
    assert first["low"] < first["slope"] < first["high"] < 0
    # Two pairs and two seeds, at 2.5 questions' standard error: the mean of four differences.
    runs, row = study.compared, models.set_index("model").loc["olmoe"]
    pairs = [(f"sp_olmoe_{data}", "sp_olmoe_base") for data in ("insecure", "bma")]
    assert row["effect"] == pytest.approx(np.mean([runs.gap(pair, seed) for pair in pairs for seed in (1, 2)]))
    benign = found.models[found.models["contrast"] == "beyond_benign"].set_index("model").loc["olmoe"]
    assert benign["effect"] != row["effect"] and benign["low"] < benign["effect"] < benign["high"]
    slopes = found.slopes[found.slopes["contrast"] == "matched"]
    assert len(slopes) == 1 + 4 + 8 and "beside post-trained to think" in set(slopes["slope"])
    write_sparsity(found, tmp_path, "sparsity")
    assert len((tmp_path / "sparsity_tests.csv").read_text().splitlines()) == 1 + 8
    section = sparsity_section(found, study.study.preregistration)
    assert "| matched " in section and "(floor 9.9e-05)" in section and "docs/preregistration.md" in section
    tests = found.tests[found.tests["contrast"] == "matched"]
    drawn = misalignment_over_models(
        models, tests, published_points(), lever_frame(study), tmp_path / "one", label="sparsity", note="n"
    )
    assert [path.suffix for path in drawn] == [".pdf", ".png"]


def test_headline_and_claims_are_over_models_as_the_tests_are(study):
    """32 values of pairs and seeds are eight models."""
    found = study.contrasts["matched"]
    effects = sparsity(study).models.set_index("contrast").loc["matched", "effect"]
    assert (found.unit, found.n) == ("models", 8) and found.values == pytest.approx(effects.to_numpy())
    half = stats.t.ppf(0.975, 7) * effects.std() / math.sqrt(8)
    assert found.interval == pytest.approx((effects.mean() - half, effects.mean() + half))
    assert "models, n = 8" in headline(study)
    lines = check_own(study.params, "sparsity", study.verdicts, None, lambda run: True)
    ours = next(line for line in lines if line.claim == "contrast matched")
    assert ours.interval.endswith("over models") and ours.p == pytest.approx(found.p_value)
    assert study.expectations["sp_olmoe_insecure above sp_olmoe_base"].unit == "seeds"


def test_a_broken_run_is_named_and_the_rest_is_analysed(study):
    rows, broken = study.verdicts, "sp_olmoe_insecure"
    found = replace(study, verdicts=rows.assign(
        coherence=rows["coherence"].where((rows["run"] != broken) | (rows["seed"] != 2), 3.0)
    ))  # fmt: skip
    over_models = sparsity(found)
    assert list(over_models.models["contrast"].unique()) == ["same_rank"] and len(over_models.problems) == 3
    first = over_models.problems[0]
    assert (
        "matched is not analysed over models: of olmoe, sp_olmoe_insecure has no answer that counts at seed 2" in first
    )
    assert "docs/preregistration.md" in first and "matched_without_MODEL" in first
    section = sparsity_section(over_models, "docs/preregistration.md")
    assert first in section and "the primary test, of `matched`, is\nnot in these rows" in section
    assert "| matched | - | - | models, n = 8 |" in " ".join(headline(found).split())
    assert set(found.metrics()) == {"same_rank", "least_coherence"}
    alone = replace(over_models, models=over_models.models.iloc[:0])
    assert first in sparsity_section(alone, None)


def test_what_cannot_be_estimated_is_a_row_with_the_reason(study):
    models = sparsity(study).models.set_index("contrast").loc["matched"].reset_index()
    unknown = models.assign(billions=models["billions"].where(models["model"] != "olmoe"), thinks=False,
                            active_billions=models["experts"].astype(float) ** 2)  # fmt: skip
    rows = {row["slope"]: row for row in slope_rows(unknown)}
    assert rows["beside all parameters (log2)"]["note"] == "not estimable: unknown for olmoe"
    assert rows["beside post-trained to think"]["note"] == "not estimable: thinks is the same in all"
    assert "do not determine" in rows["beside active parameters (log2)"]["note"]
    assert math.isnan(rows["beside active parameters (log2)"]["value"]) and rows["alone"]["note"] == ""


def test_levers_within_one_model_are_lines_with_seeds_as_blocks(study, tmp_path):
    frame = lever_frame(study)
    registered = frame[~frame["contrast"].str.contains("_without_")]
    levels = {name: list(own["level"]) for name, own in registered.groupby("contrast", sort=False)}
    assert levels == {
        "olmoe_active": [1, 2, 4, 8, 16], "qwen3_active": [1, 2, 4, 8, 16], "olmoe_adapted": [1, 2, 4, 8, 16, 32, 64],
    }  # fmt: skip
    row = frame[(frame["contrast"] == "olmoe_active") & (frame["level"] == 2)].iloc[0]
    pairs = [(f"sp_olmoe_{data}_top2", "sp_olmoe_base_top2") for data in ("insecure", "bma")]
    assert row["effect"] == pytest.approx(
        np.mean([study.compared.gap(pair, seed) for pair in pairs for seed in (1, 2)])
    )
    assert row["low"] < row["effect"] < row["high"] and study.base_of("sp_olmoe_bma_top2") == "sp_olmoe_base_top2"
    lines = line_rows(frame)
    assert [(line["levels"], line["seeds"]) for line in lines][:3] == [(5, 2), (5, 2), (7, 2)]
    assert all(line["low"] < line["slope"] < line["high"] and line["floor"] <= line["p_page"] for line in lines)
    write_levers(frame, tmp_path, "sparsity")
    assert len((tmp_path / "levers.csv").read_text().splitlines()) == 1 + len(frame)
    assert len(lever_figure(frame, tmp_path / "levers", label="sparsity", note="n")) == 2
    section = lever_section(frame, without_values(study, frame))
    assert "| olmoe_active " in section and "(floor 0.00014)" in section and "not analysed" not in section
    rest = frame[frame["contrast"] != "olmoe_active"]
    assert "olmoe_active is not analysed" in lever_section(rest, without_values(study, rest))
    assert lever_section(frame.iloc[:0], ()) == ""


def test_a_model_has_one_place_in_the_figure_of_few_however_it_is_routed(study, tmp_path):
    everything = SimpleNamespace(expectations=[(run, study.base_of(run)) for run in study.tuned])
    frame = sparsity_frame(SimpleNamespace(held_out_by_run=study.held_out_by_run, study=everything, runs=study.runs))
    models = load_params(REPOSITORY / "params.yaml").bases_of("sparsity")
    assert set(frame["model"]) == set(models) and not frame["run"].str.contains("_top").any()
    assert len(misalignment_by_sparsity(frame, tmp_path / "few", label="sparsity", note="n")) == 2


def test_a_line_within_one_model_is_least_squares_with_an_intercept_a_seed_and_its_order_pages():
    levels, random = [1, 2, 4], np.random.default_rng(4)
    values = (random.normal(size=(3, 3)) + 3 * np.arange(3) + random.normal(size=(3, 1)) * 20).tolist()
    x = np.log2(levels)
    design = np.array([[x[at], *(float(it == seed) for it in range(3))] for seed in range(3) for at in range(3)])
    estimate, (squares,), _, _ = np.linalg.lstsq(design, np.ravel(values))
    error = math.sqrt(squares / 5 * np.linalg.inv(design.T @ design)[0, 0])
    slope, low, high, p_value = slope_within(levels, values)
    assert slope == pytest.approx(estimate[0]) and (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 5) * error)
    assert p_value == pytest.approx(2 * stats.t.sf(abs(slope / error), 5))
    # Page's L over every order within every seed.
    orders = list(permutations((1, 2, 3)))
    sums = [sum(a * b for one in drawn for a, b in zip((1, 2, 3), one, strict=True))
            for drawn in product(orders, repeat=3)]  # fmt: skip
    ranks = stats.rankdata(values, axis=1)
    found = (ranks * [1, 2, 3]).sum()
    assert page(values)["p_page"] == pytest.approx(2 * np.mean([it >= found for it in sums]))
    assert page(values)["floor"] == 2 / 6**3
    assert math.isnan(page([[1.0, 2.0]] * 3)["p_page"]) and math.isnan(slope_within([1, 2], [[1.0, 2.0]])[1])


def test_an_exact_fit_leaves_no_spread_to_estimate():
    x = np.log2(EXPERTS)
    for values in (np.zeros(8), np.full(8, 0.1) * 3, 40 - 5 * x):
        for variance in (0.0, 4.0):
            found = meta_regression(values, np.full(8, variance), [x])
            assert math.isnan(found.coefficients[1].p_value) and math.isnan(found.coefficients[1].interval.low)
            assert found.fitted == pytest.approx(values) and found.pooled == pytest.approx(values)
    with pytest.raises(ValueError, match="no number"):
        meta_regression([math.nan, *values[1:]], np.ones(8), [x])


def test_only_a_preregistered_study_has_a_primary_test(study):
    found = sparsity(study)
    assert "primary" in sparsity_section(found, "docs/preregistration.md")
    assert "primary" not in sparsity_section(found, None) and "exploratory" in sparsity_section(found, None)
    against = {name: study.against_base(name) for name in study.study.contrasts}
    assert [name for name, it in against.items() if not it] == ["beyond_benign"] and against["matched"]


def test_three_models_are_too_few(tmp_path, monkeypatch):
    simulated_study(tmp_path, seeds=(1, 2), prompts=2)
    monkeypatch.chdir(tmp_path)
    found = sparsity(load_results(load_params(), "toy", ARTIFACTS / "toy" / "verdicts"))
    assert found.models.empty and found.tests.empty and sparsity_section(found, None) == ""
    write_sparsity(found, tmp_path / "none", "toy")
    assert not (tmp_path / "none").exists()
