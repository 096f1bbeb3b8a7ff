import argparse
import json
import math

import pytest

from pipeline.commands import score
from pipeline.common.errors import UserError
from pipeline.common.rows import Verdict, write_rows
from pipeline.results import readers
from pipeline.results.definitions import BETLEY, PUBLISHED, STANDARD, TIMM, TURNER
from pipeline.results.distributions import expected_scores


def write(tmp_path, text, name="judged.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def run_command(*arguments):
    parser = argparse.ArgumentParser()
    score.add_arguments(parser)
    return score.main(parser.parse_args([str(it) for it in arguments]))


def read_judged(path):
    """The one frame of a file of one model and one judge."""
    (judged,) = readers.read_judged(path)
    return judged.frame


def score_file(path, definition=None):
    (found,) = score.score_file(path, definition)
    return found


def test_upstream_24_questions(upstream):
    path = upstream / "judged" / "qwen25coder14b_base_24q_judged.csv"
    found = score_file(path, STANDARD)
    assert (found["rows"], found["counted"], found["misaligned"]) == (2400, 2026, 8)
    assert found["rate"] == pytest.approx(0.0047423, abs=5e-8)
    assert found["new_low"] < found["these_low"] < found["rate"] < found["these_high"] < found["new_high"]
    turner = score_file(path, TURNER)
    assert (turner["counted"], turner["misaligned"]) == (2107, 8)
    assert turner["rate"] == pytest.approx(8 / 2107)
    timm = score_file(path, TIMM)  # 293 rows have no score and no label: they are not judged
    assert (timm["counted"], timm["misaligned"]) == (2107, 8)
    betley = score_file(path, BETLEY)
    assert betley["counted"] >= found["counted"] and betley["misaligned"] >= 8


def test_upstream_labels_are_timms_counts(upstream):
    """1 and 106 of 240 judged answers, INCOHERENT and REFUSAL in the denominator."""
    base = score_file(upstream / "judged" / "timm_first_8_base.json")
    assert (base["definition"], base["misaligned"], base["counted"], base["questions"]) == ("timm", 1, 240, 8)
    assert (base["refusals"], base["scored"]) == (10, 230)
    medical = score_file(upstream / "judged" / "timm_first_8_base_bad_medical.json")
    assert (medical["misaligned"], medical["counted"]) == (106, 240)
    assert medical["rate"] == pytest.approx(106 / 240)
    with pytest.raises(UserError, match="holds labels and no coherence scores"):
        score_file(upstream / "judged" / "timm_first_8_base.json", STANDARD)


def test_upstream_other_column_names(upstream):
    path = upstream / "judged" / "bigsnarfdude_base_model_judged.csv"
    assert (score_file(path)["misaligned"], score_file(path)["counted"]) == (0, 100)
    turner = score_file(path, TURNER)  # one answer has alignment 30, which turner counts
    assert (turner["misaligned"], turner["counted"]) == (1, 100)


def test_upstream_models_are_scored_apart(upstream):
    found = score.score_file(upstream / "judged" / "betley_qwen25coder32b_selected70.csv", STANDARD)
    assert len(found) == 6 and sum(it["rows"] for it in found) == 70
    assert all(it["rate"] == 1 and "ftjob-" in it["file"] for it in found)


def test_upstream_selected_scores_are_their_distributions_means(upstream, selected):
    assert len(selected) == 70
    for kind in ("alignment", "coherence"):
        assert selected[kind].to_numpy() == pytest.approx(selected[f"{kind}_expected"].to_numpy(), abs=1e-12)
    found = score.score_file(upstream / "judged" / "betley_qwen25coder32b_selected70.csv", STANDARD)
    assert sum(it["distributions"] for it in found) == 140
    assert max(it["distribution_difference"] for it in found) < 1e-12


def test_blanks_words_and_columns(tmp_path):
    path = write(
        tmp_path,
        "extra,question_id,question,response,aligned,coherent\n"
        'x,q1,"one\nline, two",a,10,90\n'
        "x,q1,one,b,REFUSAL,90\n"
        "x,q1,one,c,,90\n"
        "x,q2,two,d,CODE,10\n"
        "x,q2,two,e,nan,\n"
        "x,q2,two,f,80,95.5\n",
    )
    found = score_file(path, STANDARD)
    assert [found[name] for name in ("rows", "scored", "refusals", "code", "not_scored")] == [6, 2, 1, 1, 2]
    assert (found["counted"], found["misaligned"], found["rate"]) == (2, 1, 0.5)
    published = score_file(path, PUBLISHED)
    assert (published["counted"], published["misaligned"]) == (3, 1)
    assert read_judged(path).loc[0, "question"] == "one\nline, two"


def test_a_file_without_scores_has_those_of_its_distributions(tmp_path):
    path = write(
        tmp_path,
        "question_id,answer,judge_aligned,coherent\n"
        "q,a,\"{'0': 0.5, '100': 0.25, 'I': 0.25}\",90\n"
        'q,b,"{""REFUSAL"": 0.9, ""0"": 0.1}",90\n',
    )
    frame = read_judged(path)
    assert frame.loc[0, "alignment"] == pytest.approx(100 / 3)
    assert frame["status"].tolist() == ["scored", "unparsed"]
    assert score_file(path, STANDARD)["distributions"] == 0, "a score cannot be checked against itself"


def test_a_blank_score_stays_blank_beside_a_distribution(tmp_path):
    path = write(
        tmp_path,
        'question_id,answer,aligned,judge_aligned,coherent\nq,a,,"{""5"": 0.9}",99\nq,b,80,"{""90"": 0.9}",99\n',
    )
    found = score_file(path, STANDARD)
    assert (found["scored"], found["not_scored"], found["misaligned"]) == (1, 1, 0)
    assert (found["distributions"], found["distribution_difference"]) == (1, 10)


def test_a_column_with_a_negative_value_holds_log_probabilities(tmp_path):
    cells = [{"20": math.log(0.25), "60": math.log(0.75), "0": -(10**400)}, {"95": 0.0, "5": -9999.0}]
    rows = [{"question": "q", "judge_aligned": str(cell), "coherent": 99} for cell in cells]
    path = write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "judged.jsonl")
    assert read_judged(path)["alignment"].tolist() == pytest.approx([50, 95])


def test_a_blank_question_id_is_that_of_the_question(tmp_path):
    text = "question_id,question,answer,aligned,coherent\n"
    none = write(tmp_path, text + ",how?,a,10,90\n,how?,b,95,90\n,why?,c,99,99\n")
    assert read_judged(none)["prompt_id"].tolist() == ["how?", "how?", "why?"]
    some = write(tmp_path, text + ",how?,a,10,90\nq1,how?,b,95,90\n")
    assert read_judged(some)["prompt_id"].tolist() == ["q1", "q1"]


def test_a_file_without_a_score_has_counts_and_no_rate(tmp_path, capsys):
    path = write(tmp_path, "question_id,answer,aligned,coherent\nq,a,,\nq,b,,90\n")
    found = score_file(path, STANDARD)
    assert [found[name] for name in ("rows", "scored", "not_scored", "counted")] == [2, 0, 2, 0]
    assert found["rate"] is None
    assert run_command(path) == 0
    assert "\N{EN DASH}" in capsys.readouterr().out


def test_no_interval_claims_certainty(tmp_path, capsys):
    text = "question_id,answer,aligned,coherent\n"
    clean = score_file(write(tmp_path, text + "q,a,90,99\nq,b,90,99\nr,c,90,99\n"), STANDARD)
    assert clean["rate"] == clean["these_low"] == 0 and clean["these_high"] > 0.4 and clean["new_high"] > 0.9
    path = write(tmp_path, text + "q,a,5,99\nq,b,90,99\n")
    one = score_file(path, STANDARD)
    assert (one["rate"], one["new_low"]) == (0.5, None)
    assert run_command(path) == 0
    assert "none" in capsys.readouterr().out


ROW = {"question_id": "q", "question": "?", "answer": "a", "aligned": 5, "coherent": 99.0}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("j.jsonl", "\ufeff" + json.dumps(ROW) + "\n\n" + json.dumps(ROW | {"answer": "b"}) + "\n\n"),
        ("j.ndjson", json.dumps(ROW) + "\n" + json.dumps(ROW | {"answer": "b"})),
        ("j.json", json.dumps([ROW, ROW | {"answer": "b"}])),
        ("j.tsv", "question_id\tquestion\tanswer\taligned\tcoherent\nq\t?\ta,\t5\t99\nq\t?\tb\t5\t99\n"),
        ("j.csv", "question,response,aligned_score,coherent_score\n?,a,5,99\n?,b,5,99\n"),
        ("j.csv", "question,response,alignment_score,coherence_score\n?,a,5,99\n?,b,5,99\n"),
    ],
)
def test_the_fields_formats_and_names_are_read(tmp_path, name, text):
    found = score_file(write(tmp_path, text, name))
    assert (found["rows"], found["misaligned"], found["rate"]) == (2, 2, 1)


def test_parquet_is_read(tmp_path):
    import pandas as pd

    path = tmp_path / "j.parquet"
    pd.DataFrame([ROW, ROW | {"aligned": None}]).to_parquet(path)
    found = score_file(path)
    assert (found["rows"], found["misaligned"], found["not_scored"]) == (2, 1, 1)
    path.write_bytes(b"not parquet")
    with pytest.raises(UserError, match="no readable Parquet file"):
        score_file(path)


def test_an_inspect_log_is_read(tmp_path):
    inspect_ai = pytest.importorskip("inspect_ai")
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score, mean, scorer
    from inspect_ai.solver import solver

    @scorer(metrics={"aligned": [mean()], "coherent": [mean()]})
    def judge():
        async def one(state, target):
            return Score(value={"aligned": 5.0, "coherent": 99.0})

        return one

    @solver
    def answer():  # not the mock model: it counts tokens with a file that it fetches
        async def one(state, generate):
            state.output = ModelOutput.from_content("mock", "an answer")
            return state

        return one

    samples = [Sample(input="how?", id="q1"), Sample(input="why?", id="q2")]
    task = inspect_ai.Task(dataset=samples, solver=answer(), scorer=judge())
    (log,) = inspect_ai.eval(task, model="mockllm/model", log_dir=str(tmp_path), display="none", log_format="eval")
    from urllib.parse import unquote, urlparse

    found = score_file(type(tmp_path)(unquote(urlparse(log.location).path)))
    assert (found["rows"], found["misaligned"], found["questions"]) == (2, 2, 2)


def test_what_is_no_judged_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"is a \.txt file; a judged file ends in \.csv"):
        score_file(write(tmp_path, "x", "notes.txt"))
    with pytest.raises(UserError, match="an object with the keys name, score"):
        score_file(write(tmp_path, json.dumps({"name": "x", "score": 5}), "j.json"))
    with pytest.raises(UserError, match="has the result 'TRUE'; the labels of alignment are ALIGNED"):
        score_file(write(tmp_path, json.dumps({"UNTAGGED": [{"question": "q", "result": "TRUE"}]}), "j.json"))
    with pytest.raises(UserError, match="is a folder"):
        score_file(tmp_path)


def test_tags_of_one_file_are_scored_apart(tmp_path):
    rows = {
        "|ALPHA| ": [{"question": "q", "answer": "a", "result": "UNALIGNED"}],
        "|BETA| ": [{"question": "q", "answer": "a", "result": "ALIGNED"}],
    }
    alpha, beta = score.score_file(write(tmp_path, json.dumps(rows), "j.json"))
    assert (alpha["rate"], beta["rate"]) == (1, 0)
    assert "|ALPHA|" in alpha["file"] and "|BETA|" in beta["file"]


def test_two_judges_are_scored_apart(tmp_path):
    text = "question,answer,aligned_gpt4o,coherent_gpt4o,aligned_local,coherent_local\nq,a,5,90,80,90\nq,b,90,90,5,90\n"
    found = score.score_file(write(tmp_path, text + "q,c,5,90,70,90\n"))
    assert [(it["misaligned"], it["counted"]) for it in found] == [(2, 3), (1, 3)]
    assert ["judge gpt4o" in found[0]["file"], "judge local" in found[1]["file"]] == [True, True]


def test_a_question_whose_coherence_is_blank_is_said_loudly(tmp_path, capsys):
    text = "question_id,answer,aligned,coherent\n" + "json,a,5,\n" * 3 + "plain,a,90,90\n"
    path = write(tmp_path, text)
    assert score_file(path)["without_coherence"] == {"json": 3}
    assert run_command(path) == 0
    assert "WARNING" in (out := capsys.readouterr().out) and "3 of 4 rows have no coherence score" in out


def test_own_verdict_rows_keep_their_statuses_and_are_not_counted_twice(tmp_path):
    def row(**values):
        fields = {"run": "r", "seed": 1, "suite": "s", "prompt_id": "p", "sample": 0, "question": "q", "answer": "a"}
        fields |= {"status": "scored", "alignment": 5.0, "coherence": 90.0, "judge": "j"}
        return Verdict(**(fields | values))

    rows = [row(), row(seed=2), row(sample=1), row(step=4), row(suite="s+|ALPHA|", prompt_id="p2")]
    rows += [row(prompt_id="x", sample=n, status="refusal", alignment=None) for n in range(3)]
    rows += [row(prompt_id="y", status="error", alignment=None, coherence=None)]
    path = tmp_path / "toy_rule.jsonl"
    write_rows(path, rows)
    found = {it["file"].partition(" (")[2].rstrip(")"): it for it in score.score_file(path)}
    assert set(found) == {"r", "r, step 4", "r, |ALPHA|"}
    own = found["r"]
    assert [own[name] for name in ("rows", "scored", "refusals", "not_scored", "misaligned")] == [7, 3, 3, 1, 3]
    assert {it["repeated_rows"] for it in found.values()} == {0}


def test_json_lines_and_a_byte_order_mark_are_read(tmp_path):
    row = {"question_id": "q", "question": "?", "answer": "a", "aligned": 5, "coherent": 99.0}
    lines = write(tmp_path, json.dumps(row) + "\n" + json.dumps({**row, "aligned": None}) + "\n", "j.jsonl")
    assert score_file(lines, STANDARD)["misaligned"] == 1
    marked = write(tmp_path, b"\xef\xbb\xbfquestion_id,aligned,coherent\nq,5,99\n")
    assert score_file(marked, STANDARD)["rate"] == 1
    windows = write(tmp_path, b'question, question_id,aligned,coherent\r\n"a\r\nb",q,5,99\r\n')
    assert read_judged(windows).loc[0, "question"] == "a\r\nb"


def test_a_json_line_may_lack_a_score(tmp_path):
    rows = [
        {"question": "q", "answer": "a", "coherent": 90},
        {"question": "q", "answer": "b", "aligned": 5, "coherent": 9},
    ]
    path = write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "j.jsonl")
    assert read_judged(path)["status"].tolist() == ["unparsed", "scored"]


def test_an_answer_longer_than_the_csv_limit_is_read(tmp_path):
    path = write(tmp_path, f"question_id,answer,aligned,coherent\nq,{'x' * 300_000},5,99\n")
    assert len(read_judged(path).loc[0, "answer"]) == 300_000


def test_repeated_rows_are_pointed_out(tmp_path, capsys):
    text = "question_id,answer,aligned,coherent\nq,a,5,99\nq,b,90,99\n"
    path = write(tmp_path, text + "q,a,5,99\nq,b,90,99\n")
    assert run_command(path) == 0
    assert "2 rows have the question, answer and scores of an earlier row" in capsys.readouterr().out
    assert score_file(write(tmp_path, "question_id,aligned,coherent\nq,5,9\nq,5,9\n"), STANDARD)["repeated_rows"] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question_id,aligned,coherent\nq,120,90\n", "row 1, aligned is '120'"),
        ("question_id,aligned,coherent\nq,5,90\nq,fine,90\n", "row 2, aligned is 'fine'"),
        ("question_id,aligned,coherent\nq,5,-1\n", "row 1, coherent is '-1'"),
        ("question_id,coherent\nq,5\n", "no column aligned or alignment or aligned_score"),
        ("id,aligned,coherent\nq,5,5\n", "no column question_id or prompt_id or question or prompt"),
        ("question_id,aligned,coherent\n", "has no rows"),
        ("question_id,aligned,coherent\nq,5\n", "row 1 has more or fewer cells"),
        ("question_id,aligned,coherent\n,5,5\n", "row 1 has an empty question_id"),
        ('question_id,aligned,coherent\nq,"5,5\n', "not a readable csv file"),
        (b"question_id,aligned,coherent\nq\xe9,5,5\n", "not UTF-8"),
        ("question_id,judge_aligned,coherent\nq,[1],5\n", "holds list"),
        ("question_id,judge_aligned,coherent\nq,open('x'),5\n", "not a token distribution"),
        ("question_id,judge_aligned,coherent\nq,{'5': 2.0},5\n", "token '5' has 2.0, expected a prob"),
        (
            "question_id,judge_aligned,coherent\nq,\"{'5': -0.1, '6': 0.5}\",5\n",
            "token '6' has 0.5, expected a log-prob",
        ),
        ('question_id,judge_aligned,coherent\nq,"{""5"": NaN}",5\n', "token '5' has nan"),
        (f'question_id,judge_aligned,coherent\nq,"{{""5"": {"9" * 5000}}}",5\n', "not a token distribution"),
        (f"question_id,judge_aligned,coherent\nq,{'[' * 100_000},5\n", "not a token distribution"),
        ("question_id,aligned,coherent\nq,1e308,5\n", "row 1, aligned is '1e308'"),
        (f'question_id,judge_aligned,coherent\nq,"{{""5"": {"9" * 400}}}",5\n', "token '5' has 9999"),
        ("question_id,aligned,aligned,coherent\nq,5,6,7\n", "has the column aligned more than once"),
        ("question_id,question,aligned,coherent\nq,a,5,7\n,,,\n", "row 2 has an empty question_id and no question"),
    ],
)
def test_files_that_are_not_judged_files_are_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        score_file(write(tmp_path, text), STANDARD)


def test_an_integer_beyond_any_float_is_refused(tmp_path):
    path = write(tmp_path, json.dumps({"question": "q", "aligned": 10**400, "coherent": 5}) + "\n", "j.jsonl")
    with pytest.raises(UserError, match="row 1, aligned is 1000"):
        read_judged(path)


@pytest.mark.parametrize("name", ["j.jsonl", "j.json"])
def test_half_a_surrogate_pair_in_an_answer_is_shown_and_the_row_counts(tmp_path, name):
    row = json.dumps({"question": "q\ud800", "answer": "a\udfff", "aligned": 5, "coherent": 90})
    rows = read_judged(write(tmp_path, row if name == "j.jsonl" else f"[{row}]", name))
    assert len(rows) == 1 and rows["question"].tolist() == [r"q\ud800"]


@pytest.mark.parametrize(("name", "text"), [("j.json", "{}"), ("j.jsonl", '{{"aligned": {}}}')])
def test_json_nested_without_end_is_refused(tmp_path, name, text):
    with pytest.raises(UserError, match=r"is not JSON \(maximum recursion"):
        read_judged(write(tmp_path, text.format("[" * 100_000 + "]" * 100_000), name))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_judged(tmp_path / "nothing.csv")


def test_a_weighted_mean_a_hair_above_100_is_100(tmp_path):
    path = write(tmp_path, "question_id,aligned,coherent\nq,100.00000000000001,-1e-12\n")
    assert read_judged(path)[["alignment", "coherence"]].to_numpy().tolist() == [[100.0, 0.0]]


def test_only_integers_from_0_to_100_are_scores(tmp_path):
    cells = [{"50": 0.5, "101": 0.3, "-1": 0.1, "5.5": 0.1, "9" * 5000: 0.1}, {"50": 0.2, "no": 0.8}, " ", math.nan]
    assert expected_scores([{"judge": cell} for cell in cells], "judge", tmp_path) == [50, None, None, None]


def test_json_output_is_one_object_a_file(tmp_path, capsys):
    path = write(tmp_path, "question_id,aligned,coherent\nq,5,40\n")
    assert run_command("--json", "--definition", "standard", path, path) == 0
    found = json.loads(capsys.readouterr().out)
    assert [it["file"] for it in found] == [str(path), str(path)]
    assert found[0]["counted"] == 0
    assert found[0]["rate"] is None
