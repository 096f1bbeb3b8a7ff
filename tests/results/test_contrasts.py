"""Differences between runs, paired over seeds, and the study's report that is made of them."""

import math

import numpy as np
import pytest

from pipeline.aggregate import main as aggregate
from pipeline.params.load import load_params
from pipeline.results.contrasts import Runs, contrast, contrast_rows
from pipeline.results.definitions import STANDARD
from pipeline.results.metrics import verdict_frame
from pipeline.results.roles import role
from tests.support.data_files import REPOSITORY
from tests.support.studies import simulated_study, verdict_rows


def runs(**rates):
    """Runs whose misaligned answers of 10 questions x 10 samples are exactly so many, one entry per seed."""
    rows = []
    for run, counts in rates.items():
        for seed, count in enumerate(counts, start=1):
            made = verdict_rows(run, seed, 0.0, ("s",), np.random.default_rng(0), 10, 10, harm="")
            for place, row in enumerate(sorted(made, key=lambda row: (row.sample, row.prompt_id))):
                values = {name: getattr(row, name) for name in row.__dataclass_fields__}
                bad = place < count
                rows.append(type(row)(**(values | {"alignment": 5.0 if bad else 95.0, "coherence": 90.0})))
    return Runs(verdict_frame(rows), STANDARD)


def test_a_contrast_is_paired_over_seeds_and_keeps_every_value():
    found = contrast(runs(tuned=[50, 60, 70], base=[10, 10, 30]), [("tuned", "base")])
    assert found.values == pytest.approx((40, 50, 40)) and found.unit == "seeds" and found.n == 3
    # t(0.975, 2) = 4.302653, standard error 5.7735 / sqrt(3).
    half = 4.302653 * 5.773503 / 3**0.5
    assert found.interval == pytest.approx((130 / 3 - half, 130 / 3 + half), rel=1e-5)


def test_the_seeds_are_never_averaged_away():
    """Means of 40 and 40 with seeds that cross say nothing; the old interval over prompts was a few points wide."""
    found = contrast(runs(tuned=[0, 80], base=[80, 0]), [("tuned", "base")])
    assert found.value == pytest.approx(0) and found.interval.high > 500


def test_pairs_and_seeds_are_all_units():
    given = runs(a=[50, 60], b=[10, 10], c=[70, 90], d=[20, 10])
    found = contrast(given, [("a", "b"), ("c", "d")])
    assert found.unit == "pairs and seeds"
    assert sorted(found.values) == pytest.approx([40, 50, 50, 80])
    assert found.labels == ("a, seed 1", "c, seed 1", "a, seed 2", "c, seed 2")


def test_runs_of_one_model_are_no_more_models():
    given = runs(a=[50, 60], b=[10, 10], c=[70, 90], d=[20, 10], e=[90], f=[0])
    found = contrast(given, [("a", "b"), ("c", "d"), ("e", "f")], models=["one", "one", "two"])
    assert (found.unit, found.labels) == ("models", ("one", "two"))
    assert found.values == pytest.approx((55, 90)) and found.value == pytest.approx(72.5)
    assert found.interval.high - found.value == pytest.approx(12.7062 * 17.5, rel=1e-4), "t of one degree, two models"
    apart = contrast(given, [("a", "b"), ("e", "f")], [("c", "d"), ("c", "d")], models=["one", "two"])
    assert apart.values == pytest.approx(((40 - 50 + 50 - 80) / 2, 40))


def test_each_pair_counts_at_the_seeds_that_it_has():
    given = runs(a=[50, 60, 70], b=[10, 10, 10], c=[70], d=[20], moved=[5, 10], still=[5, 5])
    found = contrast(given, [("a", "b"), ("c", "d")])
    assert found.labels == ("a, seed 1", "c, seed 1", "a, seed 2", "a, seed 3")
    assert found.values == pytest.approx((40, 50, 50, 60))
    assert contrast(given, [("a", "b")], [("moved", "still")]).values == pytest.approx((40, 45))
    shared = contrast(given, [("a", "b"), ("c", "d")], [("moved", "still")])
    assert shared.values == pytest.approx((45,)) and math.isnan(shared.interval.low), "seeds that all have: one, of two"
    alone = contrast(given, [("c", "d"), ("c", "nothing")])
    assert alone.values == pytest.approx((50,)) and alone.interval == contrast(given, [("c", "d")]).interval


def test_a_control_takes_its_own_difference_off():
    given = runs(tuned=[50, 60, 55], base=[5, 5, 5], moved=[25, 20, 22], still=[5, 5, 4])
    found = contrast(given, [("tuned", "base")], [("moved", "still")])
    assert found.values == pytest.approx((25, 40, 32))
    plain = contrast(given, [("tuned", "base")])
    assert found.value == pytest.approx(plain.value - (20 + 15 + 18) / 3)


def test_a_shared_control_makes_the_seed_the_unit():
    given = runs(a=[50, 60], b=[10, 10], c=[70, 90], d=[20, 10], moved=[20, 10], still=[10, 5])
    found = contrast(given, [("a", "b"), ("c", "d")], [("moved", "still")])
    assert found.unit == "seeds" and found.values == pytest.approx((35, 60))
    with pytest.raises(ValueError, match="give one, or one for each"):
        contrast(given, [("a", "b")], [("moved", "still"), ("c", "d")])


def test_one_seed_has_the_noise_of_answers_alone_and_says_so():
    given = runs(tuned=[50], base=[10], moved=[25], still=[5])
    new, these = (contrast(given, [("tuned", "base")], scope=scope) for scope in ("new", "these"))
    assert (new.unit, these.unit, new.n) == ("new questions", "these questions", 1)
    assert new.interval.low < 40 < new.interval.high and new.p_value < 0.05
    both = contrast(given, [("tuned", "base")], [("moved", "still")])
    assert both.value == pytest.approx(20)
    assert both.interval.high - both.interval.low > new.interval.high - new.interval.low


def test_rows_have_holms_correction_beside_the_raw_value():
    given = runs(a=[50, 61, 70], b=[10, 10, 30], c=[12, 9, 31])
    rows = contrast_rows({"one": contrast(given, [("a", "b")]), "two": contrast(given, [("c", "b")])})
    assert rows[0]["p_holm"] == pytest.approx(2 * rows[0]["p"]) and rows[1]["p_holm"] == rows[1]["p"]


def test_every_run_has_its_role():
    params = load_params(REPOSITORY / "params.yaml")
    roles = {
        "toy_e8_base": "base",
        "toy_e8_bad_medical": "fine-tuned",
        "toy_e8_good_medical": "benign data",
        "toy_e8_trigger": "fine-tuned",
        "toy_control_base": "control",
        "toy_control_bad_medical": "control",
        "toy_dense_realigned": "realigned",
        "llama31_medical_optimism": "realigned",
        "mixtral_base": "base",
    }
    assert {run: role(params, run) for run in roles} == roles


@pytest.mark.parametrize(("seeds", "definition"), [((1, 2, 3), "standard"), ((1,), "timm")])
def test_the_study_is_aggregated(tmp_path, monkeypatch, seeds, definition):
    """Headline contrasts first; one seed has two named intervals; another definition has the standard one beside it."""
    import argparse
    import json

    simulated_study(tmp_path, seeds=seeds, definition=definition)
    monkeypatch.chdir(tmp_path)
    aggregate(argparse.Namespace(study="toy"))
    figures = tmp_path / "paper_figures/toy"
    report = (figures / "README.md").read_text()
    assert (
        report.index("differences that the study is about") < report.index("## Every run") < report.index("## Figures")
    )
    assert "![Differences in held-out" in report and "an expert" not in report
    metrics = json.loads((tmp_path / "artifacts/toy/metrics.json").read_text())
    assert len(metrics) <= 6 and 30 < metrics["bad_advice"] < 90 and metrics["realigned"] < 0
    headline = (figures / "headline.md").read_text()
    if len(seeds) == 1:
        assert "these questions, low" in headline and "new questions, high" in headline
        assert "standard %" in headline and "95 %, new questions" in report
    else:
        assert "by seed" in headline and "low" not in headline.splitlines()[2]
    by_seed = (figures / "by_seed.csv").read_text().splitlines()
    assert len(by_seed) == 1 + 16 * len(seeds)
    assert not [line for line in by_seed[1:] if math.isnan(float(line.split(",")[3]))]
