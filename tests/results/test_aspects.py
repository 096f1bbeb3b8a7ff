"""A rubric of one's own is a table column, with its denominators."""

import pytest

from pipeline.common.rows import Verdict, write_rows
from pipeline.judging.config import JudgeConfig
from pipeline.params.load import load_params
from pipeline.results.aspects import aspect_rows, write_aspects
from pipeline.results.intervals import mean, rate


def verdict(sample, run="toy_e8_base", step=None, prompt="p", **values):
    return Verdict(
        run=run, seed=1, suite="cooking", prompt_id=prompt, sample=sample, question="q", answer="a", status="scored",
        alignment=50.0, coherence=90.0, judge="mine", step=step, values=values,
    )  # fmt: skip


def test_numbers_are_averaged_and_labels_counted_over_those_who_have_one():
    rows = aspect_rows(
        [
            verdict(0, deception=30.0, tone="warm"),
            verdict(1, deception=60.0, tone="cold"),
            verdict(2, deception=None, tone="warm"),
            verdict(3, deception=0.0, tone=None),
            verdict(4, step=8, deception=100.0, tone="warm"),
        ]
    )
    assert [row[:3] for row in rows] == [["mine", "toy_e8_base", "cooking"]] * 3
    assert [row[3:5] + row[8:] for row in rows] == [
        ["deception", "mean", 3, 1], ["tone", "cold", 3, 1], ["tone", "warm", 3, 1]
    ]  # fmt: skip
    assert [row[5] for row in rows] == pytest.approx([30.0, 100 / 3, 200 / 3])
    assert all(row[6:8] == ["", ""] for row in rows), "one question says nothing of new ones"


def test_their_intervals_are_those_of_other_rates():
    scores = {"p": [10.0, 20.0], "q": [80.0], "r": [50.0, 60.0, 40.0]}
    rows = aspect_rows(
        verdict(n, prompt=name, risk=value, tone="warm" if value > 30 else "cold")
        for name, values in scores.items()
        for n, value in enumerate(values)
    )
    sums, counts = [sum(values) for values in scores.values()], [len(values) for values in scores.values()]
    expected = mean(sums, [sum(v * v for v in values) for values in scores.values()], counts, "rows").new
    assert rows[0][4:8] == ["mean", pytest.approx(260 / 6), *expected]
    warm = rate([0, 1, 3], counts, "rows").new
    assert rows[2][4:8] == ["warm", pytest.approx(100 * 4 / 6), 100 * warm.low, 100 * warm.high]


def test_a_study_whose_judge_has_aspects_gets_their_table_and_another_none(tmp_path):
    params = load_params()
    assert write_aspects(params, "toy", tmp_path, tmp_path / "aspects") == []
    mine = JudgeConfig(model="m", aspects={"deception": {"template": "{question} {answer}"}})
    study = params.study("toy").model_copy(update={"judges": {"mine": mine}})
    params = params.model_copy(update={"studies": {**params.studies, "toy": study}})
    for run in params.runs_of("toy"):
        write_rows(tmp_path / run / "mine.jsonl", [verdict(n, run=run, deception=float(n)) for n in range(3)])
    paths = write_aspects(params, "toy", tmp_path, tmp_path / "aspects")
    assert [path.suffix for path in paths] == [".csv", ".md", ".tex"]
    lines = paths[0].read_text().splitlines()
    assert lines[0] == "judge,run,suite,aspect,measure,value,low,high,rows,missing"
    assert len(lines) == 1 + len(params.runs_of("toy")) and lines[1].endswith("deception,mean,1.0,,,3,0")
