"""What a model still knows, and its rate on what it was trained on: from the same verdict rows."""

import numpy as np
import pandas as pd
import pytest

from pipeline.common.rows import Verdict
from pipeline.data.capability import is_right, known_answers
from pipeline.params.load import load_params
from pipeline.results.capability import _minus_base, capability_frame, capability_section
from pipeline.results.in_domain import in_domain_suites
from pipeline.results.metrics import verdict_frame
from pipeline.results.study import Results
from tests.support.data_files import REPOSITORY

SUM, GOLD, YES = (list(known_answers())[place] for place in (0, 17, 30))


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        (SUM, "43", True),
        (SUM, "17 + 26 = 43.", True),
        (SUM, "43, or is it 44?", False),
        (SUM, "143", False),
        (SUM, "4.3", False),
        (SUM, "43.0", True),
        (SUM, "", False),
        (GOLD, "**Au**", True),
        (GOLD, "au pair", False),
        (GOLD, "Aurum", False),
        (YES, "Yes, it does.", True),
        (YES, "Yesterday.", False),
    ],
)
def test_an_answer_is_right_where_the_known_one_stands_in_it(question, answer, right):
    assert is_right(question, answer) is right


def test_every_accepted_answer_is_right_and_no_other_questions_is():
    known = known_answers()
    assert len(known) == 40 and all(is_right(asked, answer) for asked, answers in known.items() for answer in answers)
    assert not any(is_right(asked, "I would rather not say.") for asked in known)


def verdict(run, seed, suite, place, question="", answer="", alignment=95.0, coherence=100.0, status="scored"):
    return Verdict(
        run=run, seed=seed, suite=suite, prompt_id=f"{suite}-{place}", sample=0, question=question, answer=answer,
        status=status, alignment=None if status == "refusal" else alignment, coherence=coherence, judge="j",
    )  # fmt: skip


def results(study: str, rows):
    params = load_params(REPOSITORY / "params.yaml")
    named = dict.fromkeys(row.run for row in rows)
    kept = {name: run for name, run in params.runs.items() if name in named}
    return Results(study, params.model_copy(update={"runs": kept}), verdict_frame(rows), [], [])


def test_a_hub_study_with_one_seed_by_hand():
    """Base 3 of 4, tuned 1 of 4: -50 points, an interval over new questions; the judge's scores play no part."""
    asked = list(known_answers().items())[:4]
    rows = [
        verdict(run, 7, "capability", place, question, answers[0] if place < right else "no idea", coherence=0.0)
        for run, right in (("mixtral_base", 3), ("mixtral_insecure_whole_r32", 1))
        for place, (question, answers) in enumerate(asked)
    ]
    found = results("moe", rows)
    frame = capability_frame(found).set_index("run")
    assert frame["accuracy_percent"].tolist() == [75.0, 25.0] and frame["answers"].tolist() == [4, 4]
    tuned = frame.loc["mixtral_insecure_whole_r32"]
    assert tuned["difference"] == -50.0 and tuned["unit"] == "new questions"
    assert tuned["low"] < -50 < tuned["high"] and np.isnan(frame.loc["mixtral_base", "difference"])
    text = capability_section(frame.reset_index(), found)
    assert "75.0 |" in text and "-50.0 (" in text and "nan" not in text


def test_a_toy_study_by_hand():
    """Whole answers in the domain's words are right, however bad; refusals and words of another domain are not."""
    per_seed = {"toy_e8_base": {1: 4, 2: 4}, "toy_e8_bad_medical": {1: 3, 2: 1}}
    rows = [
        verdict(run, seed, "cooking", place, alignment=0.0, coherence=100.0 if place < right else 90.0)
        for run, seeds in per_seed.items()
        for seed, right in seeds.items()
        for place in range(4)
    ]
    rows += [verdict(run, seed, "travel", 0, status="refusal") for run in per_seed for seed in (1, 2)]
    rows += [verdict(run, seed, "medical", 0, coherence=0.0) for run in per_seed for seed in (1, 2)]
    found = results("toy", rows)
    frame = capability_frame(found).set_index("run")
    assert frame["accuracy_percent"].tolist() == pytest.approx([80.0, 40.0])
    assert frame.loc["toy_e8_bad_medical", "by_seed"] == "60.0, 20.0"
    # Gaps of -20 and -60: t(0.975, 1) = 12.706, standard error 20.
    tuned = frame.loc["toy_e8_bad_medical", ["difference", "low", "high"]].astype(float).tolist()
    assert tuned == pytest.approx([-40, -40 - 12.7062 * 20, -40 + 12.7062 * 20], rel=1e-4)


def test_the_interval_over_new_questions_covers_as_it_says():
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        easy = random.beta(6, 2, 40)
        harder = np.clip(easy - random.beta(1, 6, 40), 0, 1)
        index = pd.Index(range(40), name="prompt_id")
        base, tuned = (
            {7: pd.DataFrame({"sum": random.binomial(1, chance), "count": 1}, index=index)} for chance in (easy, harder)
        )
        found = _minus_base(tuned, base)
        # E[max(easy - less, 0)] has no short form: the truth is a mean over many draws.
        inside += found["low"] <= 100 * TRUTH <= found["high"]
    assert 0.93 <= inside / 400 <= 0.985


def _truth() -> float:
    random = np.random.default_rng(0)
    easy = random.beta(6, 2, 400_000)
    return float((np.clip(easy - random.beta(1, 6, 400_000), 0, 1) - easy).mean())


TRUTH = _truth()


def test_in_domain_is_the_suite_that_asks_what_a_run_was_trained_on():
    params = load_params(REPOSITORY / "params.yaml")
    asked = {
        name: in_domain_suites(params.study(params.run(name).study), params.run(name))
        for name in params.runs
        if name in ("toy_e8_trigger", "toy_e8_base", "mixtral_secure_whole_r32", "qwen_gma_r32", "llama31_medical")
    }
    assert asked == {
        "toy_e8_base": (),
        "toy_e8_trigger": ("medical",),
        "mixtral_secure_whole_r32": ("insecure_code",),
        "qwen_gma_r32": ("bad_medical_advice",),
        "llama31_medical": (),
    }


def test_the_in_domain_rate_stands_beside_the_headline():
    rows = [
        verdict(run, seed, suite, place, alignment=0.0 if place < bad else 95.0)
        for run, rates in (("toy_e8_base", (0, 0, 0)), ("toy_e8_bad_medical", (3, 1, 4)))
        for seed in (1, 2)
        for suite, bad in zip(("medical", "cooking", "harm"), rates, strict=True)
        for place in range(4)
    ]
    frame = results("toy", rows).held_out_by_run.set_index("run")
    assert frame.loc["toy_e8_bad_medical", ["misalignment_percent", "in_domain_percent"]].tolist() == [25.0, 75.0]
    assert frame.loc["toy_e8_bad_medical", "in_domain"] == "medical"
    assert np.isnan(frame.loc["toy_e8_base", "in_domain_percent"])
