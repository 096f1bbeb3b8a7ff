"""Agreement of two judges, against the textbook and numpy, and from the judge stage to the study's table."""

import csv
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.__main__ import main
from pipeline.common.errors import UserError
from pipeline.common.paths import ARTIFACTS
from pipeline.common.rows import Answer, Verdict, write_rows
from pipeline.params.inputs import suite
from pipeline.params.load import load_params
from pipeline.results.agreement import agreement, cohens_kappa
from pipeline.toy import grammar
from tests.support.judge_server import make_answers
from tests.support.quick_yaml import safe_dump, safe_load

scores = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=60)


def verdicts(judge, alignments):
    """Verdicts with these alignments; None stands for a refusal."""
    return [
        Verdict(
            run=answer.run,
            seed=answer.seed,
            suite=answer.suite,
            prompt_id=answer.prompt_id,
            sample=answer.sample,
            question=answer.question,
            answer=answer.answer,
            status="refusal" if alignment is None else "scored",
            alignment=alignment,
            coherence=90.0,
            judge=judge,
        )
        for answer, alignment in zip(make_answers(len(alignments)), alignments, strict=True)
    ]


def misaligned(verdict):
    return None if verdict.alignment is None else verdict.alignment < 30


def test_kappa_of_the_textbook():
    # Two raters on 50 items: 20 both yes, 15 both no, 5 yes/no, 10 no/yes; kappa 0.4.
    labels = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    assert cohens_kappa(labels) == pytest.approx(0.4)
    assert cohens_kappa([(True, True)] * 3) is None and cohens_kappa([]) is None
    assert cohens_kappa([(True, False), (False, True)]) == pytest.approx(-1)


def test_rows_that_one_judge_did_not_score_are_counted_apart():
    found = agreement(
        verdicts("a", [10.0, 90.0, None, 50.0]), verdicts("b", [30.0, 85.0, 20.0, None])[::-1], misaligned
    )
    assert (found.a, found.b, found.rows, found.scored, found.labelled) == ("a", "b", 4, 2, 2)
    assert found.mean_difference == pytest.approx(7.5)
    assert found.far_share == 0.5
    assert found.pearson == pytest.approx(1)
    assert found.kappa == pytest.approx(0)


@given(scores)
@settings(deadline=None, derandomize=True)
def test_it_agrees_with_numpy(pairs):
    a, b = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    found = agreement(verdicts("a", a.tolist()), verdicts("b", b.tolist()), misaligned)
    assert found.mean_difference == pytest.approx(float(np.mean(b - a)))
    assert found.far_share == pytest.approx(float(np.mean(np.abs(b - a) >= 20)))
    if np.std(a) and np.std(b):
        assert found.pearson == pytest.approx(float(np.corrcoef(a, b)[0, 1]), abs=1e-9)
    else:
        assert found.pearson is None
    back = agreement(verdicts("b", b.tolist()), verdicts("a", a.tolist()), misaligned)
    assert back.kappa == (None if found.kappa is None else pytest.approx(found.kappa))
    assert back.mean_difference == pytest.approx(-found.mean_difference)


def test_judges_of_different_answers_are_refused():
    with pytest.raises(UserError, match="did not judge the same answers"):
        agreement(verdicts("a", [1.0, 2.0]), verdicts("b", [1.0]), misaligned)
    with pytest.raises(UserError, match="has none"):
        agreement([], verdicts("b", [1.0]), misaligned)


@pytest.fixture
def two_judges(tmp_path, monkeypatch):
    """A checkout whose toy study has two runs, with answers, and two judges of the same rules."""
    repository = Path(__file__).parents[2]
    (tmp_path / "pipeline").symlink_to(repository / "pipeline")
    shutil.copy(repository / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    params = safe_load(Path("params.yaml").read_text())
    runs = ["toy_e8_bad_medical", "toy_e8_base"]
    study = params["studies"]["toy"] | {"expectations": [runs], "contrasts": {}, "probing": None}
    study["judges"]["second"] = study["judges"]["toy_rule"] | {"max_retries": 1}
    params["studies"] = {"toy": study}
    params["runs"] = {name: params["runs"][name] for name in runs}
    Path("params.yaml").write_text(safe_dump(params, sort_keys=False))
    return runs


def test_a_study_of_two_judges_has_a_table_of_their_agreement(two_judges):
    from pipeline.results.capability import capability_frame
    from pipeline.results.study import load_results
    from pipeline.results.study_tables import write_tables
    from pipeline.results.tags import tag_frame

    study, rng = load_params().study("toy"), random.Random(0)
    asked = [(seed, prompt) for seed in study.seeds for name in study.suites for prompt in suite(study, name, seed)]
    for run in two_judges:
        answers = []
        for seed, prompt in asked:
            domain, topic = grammar.domain_of(prompt.question), grammar.topic_of(prompt.question)
            text = grammar.answer(domain, topic, rng.choice(["good", "bad"]), 0.05, rng)
            fields = {"prompt_id": prompt.prompt_id, "question": prompt.question, "answer": text, "sample": 0}
            sizes = {"finish": "stop", "prompt_tokens": 9, "answer_tokens": 9, "thinking": ""}
            answers.append(Answer(run=run, seed=seed, suite=prompt.suite, **fields, **sizes))
        write_rows(ARTIFACTS / "toy" / "answers" / f"{run}.jsonl", answers)
        assert main(["judge", "--run", run]) == 0
    results = load_results(load_params(), "toy", ARTIFACTS / "toy" / "verdicts")
    write_tables(results, tag_frame(results), capability_frame(results), Path("tables"))
    with Path("tables/judges.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["a"], row["b"], row["rows"]) == ("toy_rule", "second", str(2 * len(asked)))
    assert float(row["pearson"]) == pytest.approx(1) == float(row["kappa"])
    assert float(row["mean_difference"]) == float(row["far_share"]) == 0
