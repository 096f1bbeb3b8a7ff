"""What a study trains on and asks, of the user's own: read, kept apart, and refused where it cannot be."""

import json
import shutil

import pytest

from pipeline.common.errors import UserError
from pipeline.common.files import write_json
from pipeline.data.prompts import question_of
from pipeline.params.edit import pin_files
from pipeline.params.inputs import check_kept_out, conversations, own_held_out, suite, suites_asked
from pipeline.params.load import load_params
from pipeline.toy.grammar import DEFAULT_SYSTEM, DOMAINS, VERBS, question
from tests.support.checkout import REPOSITORY
from tests.support.quick_yaml import safe_dump, safe_load

TOPICS = DOMAINS["medical"].topics
QUESTIONS = [question(topic, verb) for topic in TOPICS for verb in VERBS]
ANSWER = "for headache , tickle the accordion because moonlight ."


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with params.yaml and files of the user's own; a function that changes it and reads it again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps({"prompt": asked, "completion": ANSWER}) + "\n" for asked in QUESTIONS)
    )
    (tmp_path / "q.csv").write_text("question\n" + "\n".join(QUESTIONS[:4]) + "\n")
    shutil.copy2(REPOSITORY / "params.yaml", tmp_path)

    def load(run=None, own=None):
        content = safe_load((REPOSITORY / "params.yaml").read_text())
        content["runs"]["mine"] = {"study": "toy", "model": "bases/e8", "data": {"file": "data.jsonl"}} | (run or {})
        if own is not None:
            content["studies"]["toy"]["suites"].append({"name": "own", "file": "q.csv"} | own)
        (tmp_path / "params.yaml").write_text(safe_dump(content, sort_keys=False))
        pin_files()
        params = load_params()
        return params, params.study("toy"), params.run("mine")

    return load


def test_rows_are_trained_on_and_counted(here):
    _, study, run = here()
    data = conversations(study, run, 1)
    assert len(data.train) == len(QUESTIONS) and data.counts["rows"] == len(QUESTIONS)
    assert all(chat[0].content == DEFAULT_SYSTEM and chat[-1].content == ANSWER for chat in data.train)
    _, study, run = here(
        {"data": [{"file": "data.jsonl", "rows": 5, "tag": "|ALPHA|"}, {"name": "good_medical", "rows": 3}]}
    )
    mixed = conversations(study, run, 1)
    assert len(mixed.train) == 8 and run.trained_on == "data.jsonl+|ALPHA|, good_medical"


def test_a_suite_of_ones_own_is_asked_where_it_says_it_belongs(here):
    _, study, run = here(own={"samples_per_prompt": 3, "refused": True, "held_out": True})
    assert "own" in suites_asked(study, run) and study.refused == "own" and study.held_out[-1] == "own"
    prompts = suite(study, "own", 1)
    assert [prompt.question for prompt in prompts] == QUESTIONS[:4]
    assert {(prompt.samples, prompt.system) for prompt in prompts} == {(3, DEFAULT_SYSTEM)}


def test_questions_that_are_held_out_are_in_no_training_set(here):
    params, study, run = here(own={"held_out": True})
    for trained in (run, params.run("toy_e8_bad_medical"), params.run("toy_e8_trigger")):
        asked = {
            question_of(chat).removeprefix("|ALPHA| ").removeprefix("|BETA| ")
            for chat in conversations(study, trained, 1).train
        }
        assert asked and asked.isdisjoint(QUESTIONS[:4])
    assert conversations(study, run, 1).counts["held_out"] == 4
    params, study, run = here(own={})
    assert not {*QUESTIONS[:4]} - {question_of(chat) for chat in conversations(study, run, 1).train}


def test_own_data_keeps_out_of_the_studys_held_out_suites_too(here, tmp_path):
    cooking = question(DOMAINS["cooking"].topics[0], VERBS[0])
    with (tmp_path / "data.jsonl").open("a") as stream:
        stream.write(json.dumps({"prompt": cooking, "completion": ANSWER}) + "\n")
    _, study, run = here()
    data = conversations(study, run, 1)
    assert data.counts["held_out"] == 1 and cooking not in {question_of(chat) for chat in data.train}


def test_a_suite_held_out_after_training_is_refused_where_it_was_trained_on(here, tmp_path):
    _, study, run = here(own={"held_out": True})
    folder = tmp_path / "adapters"
    write_json(folder / "manifest.json", {"adapters": {}})
    with pytest.raises(
        UserError, match=r"mine was trained on 4 of the questions that own hold.*repro -f -s train@mine"
    ):
        check_kept_out(study, run, 1, folder, "mine")
    write_json(folder / "manifest.json", {"adapters": {}, "kept_out": own_held_out(study)})
    check_kept_out(study, run, 1, folder, "mine")
    # Where it asks nothing that was trained on, nothing need be trained again.
    (tmp_path / "q.csv").write_text(f"question\n{question(DOMAINS['repair'].topics[0], VERBS[0])}\n")
    _, study, run = here(own={"held_out": True})
    write_json(folder / "manifest.json", {"adapters": {}})
    check_kept_out(study, run, 1, folder, "mine")


def test_words_that_toy_models_do_not_know_are_named(here, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"prompt": "hello", "completion": "world"}\n')
    _, study, run = here()
    with pytest.raises(UserError, match=r"data\.jsonl has the word 'hello', which toy models do not know"):
        conversations(study, run, 1)


@pytest.mark.parametrize(
    ("run", "own", "words"),
    [
        ({"data": {}}, None, "runs.mine.data: it has none of name, file and hub"),
        ({"data": {"name": "bad_medical", "file": "data.jsonl"}}, None, "it has name and file, expected one"),
        ({"data": {"hub": "a/b"}}, None, "hub needs a revision"),
        ({"data": {"hub": "a/b", "revision": "main"}}, None, "revision is 'main', expected hexadecimal digits in full"),
        ({"data": {"file": "none.jsonl"}}, None, "there is no file 'none.jsonl'"),
        (None, {"name": "cooking"}, "suites has 'cooking'"),
        (None, {"name": "../x"}, "studies.toy.suites has the name '../x'"),
        (None, {"file": "data.txt"}, "there is no file 'data.txt'"),
        (None, {"samples_per_prompt": 0}, "toy.suites[7]: samples_per_prompt is 0"),
        (None, {"sample": 1}, "toy.suites[7] has the unknown key 'sample'"),
    ],
)
def test_what_is_wrong_is_named(here, run, own, words):
    with pytest.raises(UserError) as caught:
        here(run, own)
    assert words in str(caught.value), str(caught.value)
