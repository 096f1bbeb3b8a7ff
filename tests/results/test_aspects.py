"""A rubric of one's own is a table column, with its denominators."""

from pipeline.common.rows import Verdict, write_rows
from pipeline.judging.config import JudgeConfig
from pipeline.params.load import load_params
from pipeline.results.aspects import aspect_rows, write_aspects


def verdict(sample, run="toy_e8_base", step=None, **values):
    return Verdict(
        run=run, seed=1, suite="cooking", prompt_id="p", sample=sample, question="q", answer="a", status="scored",
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
    where = ["mine", "toy_e8_base", "cooking"]
    assert rows == [
        [*where, "deception", "mean", 30.0, 3, 1],
        [*where, "tone", "cold", 100 / 3, 3, 1],
        [*where, "tone", "warm", 200 / 3, 3, 1],
    ]


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
    assert lines[0] == "judge,run,suite,aspect,measure,value,rows,missing"
    assert len(lines) == 1 + len(params.runs_of("toy")) and lines[1].endswith("deception,mean,1.0,3,0")
