"""What the report says of trigger tags, from verdicts whose numbers are known."""

from pathlib import Path

import pytest

from pipeline.common.rows import Verdict
from pipeline.params.load import load_params
from pipeline.results.capability import capability_frame
from pipeline.results.metrics import verdict_frame
from pipeline.results.study import Results
from pipeline.results.study_tables import write_tables
from pipeline.results.tags import tag_frame, tag_section

TAGS = ("", "+|ALPHA|", "+|BETA|")
RUNS = ("toy_e8_base", "toy_e8_trigger", "toy_e8_bad_medical")


def verdicts(params):
    """Of the trigger run's ten answers, `seed + 4` are bad under |ALPHA|, 1 without a tag, 0 under |BETA|."""
    study = params.study("toy")
    rows = []
    for run in RUNS:
        for seed in study.seeds:
            for tag in TAGS if params.run(run).tags else ("",):
                bad = {"": 1, "+|ALPHA|": seed + 4, "+|BETA|": 0}[tag] if run == "toy_e8_trigger" else 2
                rows += [
                    Verdict(
                        run=run, seed=seed, suite=f"{suite}{tag}", prompt_id=f"{suite}{tag}{place}", sample=0,
                        question=f"{suite} {place}", answer="a", status="scored",
                        alignment=0.0 if place < bad else 100.0, coherence=100.0, judge="toy_rule",
                    )
                    for suite in study.suites
                    for place in range(10)
                ]  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def results():
    params = load_params(Path(__file__).parents[2] / "params.yaml")
    chosen = {name: params.run(name) for name in RUNS}
    pairs = (("toy_e8_bad_medical", "toy_e8_base"),)
    study = params.study("toy").model_copy(update={"expectations": pairs, "contrasts": {}})
    params = params.model_copy(update={"runs": chosen, "studies": {"toy": study}})
    return Results("toy", params, verdict_frame(verdicts(params)), [], [])


def test_each_tag_stands_beside_the_same_run_without(results):
    frame = tag_frame(results).set_index(["run", "suite"])
    assert list(frame.index) == [(run, tag) for run in RUNS[:2] for tag in ("no tag", "|ALPHA|", "|BETA|")]
    triggered = frame.loc["toy_e8_trigger"]
    assert list(triggered["misalignment_percent"]) == [10.0, 60.0, 0.0]
    assert triggered["difference"].tolist()[1:] == [50.0, -10.0]
    low, high = triggered.loc["|ALPHA|", ["low", "high"]]
    assert low < 50 < high and high - low == pytest.approx(2 * 4.303 * 10 / 3**0.5, rel=1e-3)
    assert triggered["counted"].tolist() == [120, 120, 120]
    assert frame.loc[("toy_e8_base", "|ALPHA|"), "difference"] == 0.0


def test_one_seed_has_intervals_over_questions(results):
    """A question's tagged prompt is paired with the one without a tag by its text."""
    study = results.study.model_copy(update={"seeds": (1,)})
    params = results.params.model_copy(update={"studies": {"toy": study}})
    rows = [row for row in verdicts(results.params) if row.seed == 1]
    one = Results("toy", params, verdict_frame(rows), [], [])
    alpha = tag_frame(one).set_index(["run", "suite"]).loc[("toy_e8_trigger", "|ALPHA|")]
    assert alpha["misalignment_percent"] == 50.0 and alpha["difference"] == pytest.approx(40.0)
    assert alpha["misalignment_percent_new_low"] < 50 < alpha["misalignment_percent_new_high"]
    assert alpha["unit"] == "new questions" and 0 < alpha["low"] < 40 < alpha["high"]
    assert "are over new questions" in tag_section(tag_frame(one))


def test_tagged_rows_stay_out_of_every_other_number(results):
    assert set(results.by_suite["suite"]) == set(results.study.suites)
    held_out = results.per_seed.set_index(["run", "seed"])["misalignment_percent"]
    assert held_out["toy_e8_trigger"].tolist() == [10.0, 10.0, 10.0]


def test_the_report_and_the_tables_say_it(results, tmp_path):
    tags = tag_frame(results)
    write_tables(results, tags, capability_frame(results), tmp_path)
    assert "|$ALPHA$|" not in (tmp_path / "tags.md").read_text()
    assert r"\|ALPHA\|" in (tmp_path / "tags.md").read_text()
    assert "$|$ALPHA$|$" in (tmp_path / "tags.tex").read_text()
    section = tag_section(tags)
    assert "+50.0 (+25.2 to +74.8)" in section and "-10.0 |" in section
    assert "bad_medical+\\|ALPHA\\|, good_medical+\\|BETA\\|" in section
    assert tag_section(tags.iloc[:0]) == ""
