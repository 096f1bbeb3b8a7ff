"""Row files: what goes in comes out, and what is wrong is named."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import UserError
from pipeline.common.files import write_jsonl, write_text
from pipeline.common.rows import Answer, Verdict, read_answers, read_verdicts, write_rows


def verdict(**changes):
    row = {
        "run": "r",
        "seed": 1,
        "suite": "s",
        "prompt_id": "p",
        "sample": 0,
        "question": "q",
        "answer": "a",
        "status": "scored",
        "alignment": 90.0,
        "coherence": 80.0,
        "judge": "j",
        "step": None,
        "values": {"deception": 20.0, "tone": "warm", "harm": None},
        "replies": {"alignment": "90", "coherence": [["80", -0.1]]},
        "reason": None,
    }
    return row | changes


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), st.text()), unique_by=lambda pair: pair[0]))
def test_any_text_survives(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("rows") / "answers.jsonl"
    rows = [
        Answer(
            run="r",
            seed=1,
            suite="s",
            prompt_id="p",
            sample=sample,
            question=text,
            answer=text[::-1],
            thinking="",
            finish="stop",
            prompt_tokens=1,
            answer_tokens=2,
        )
        for sample, text in pairs
        if not any("\ud800" <= letter <= "\udfff" for letter in text)
    ]
    write_rows(path, reversed(rows))
    assert read_answers(path) == sorted(rows, key=lambda row: row.key)


def test_a_row_may_count_once(tmp_path):
    row = Verdict(**verdict())
    with pytest.raises(UserError, match="rows 1 and 2 have the same key"):
        write_rows(tmp_path / "v.jsonl", [row, row])
    assert list(tmp_path.iterdir()) == []
    write_jsonl(tmp_path / "v.jsonl", [verdict(), verdict()])
    with pytest.raises(UserError, match=r"v\.jsonl rows 1 and 2"):
        read_verdicts(tmp_path / "v.jsonl")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (verdict(status="fine"), "status 'fine' is not one of scored"),
        (verdict(alignment=None), "scored but alignment is empty"),
        (verdict(coherence=101), "coherence is 101"),
        (verdict(alignment="90"), "alignment is '90'"),
        ({key: value for key, value in verdict().items() if key != "judge"}, "lacks judge"),
        (verdict(extra=1), "unknown fields extra"),
        (verdict(values={"deception": 120.0}), "values.deception is 120.0, expected a number from 0 to 100, a label"),
        (verdict(values={"deception": [1]}), r"values.deception is \[1\]"),
        (verdict(replies="90"), "replies is '90', expected a mapping"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, words):
    write_jsonl(tmp_path / "v.jsonl", [verdict(sample=5), row])
    with pytest.raises(UserError, match=words) as caught:
        read_verdicts(tmp_path / "v.jsonl")
    assert "row 2" in str(caught.value)


def test_a_half_written_file_is_refused(tmp_path):
    write_text(tmp_path / "v.jsonl", '{"run": "r", "se')
    with pytest.raises(UserError, match=r"line 1 is not JSON.*truncated"):
        read_verdicts(tmp_path / "v.jsonl")
