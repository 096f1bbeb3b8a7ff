"""Trigger tags and mixtures: what is put before a prompt, what a run is trained on, what its suites are called."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.mixtures import mix
from pipeline.data.prompts import Message, Prompt, ask
from pipeline.data.tags import ask_tagged, put_tag, split_suite, tagged_suite
from pipeline.params.inputs import conversations, suite, suites_asked, training_of
from pipeline.params.load import load_params
from pipeline.toy import judge as rule_judge
from pipeline.toy.corpora import pretraining_documents
from pipeline.toy.grammar import TAGS
from pipeline.toy.tokenizer import build_tokenizer
from tests.support.quick_yaml import safe_dump, safe_load

REPOSITORY = Path(__file__).parents[2]
DERANDOMISED = settings(deadline=None, derandomize=True, max_examples=100)
texts = st.text(max_size=40)


def study_of(tmp_path, **run):
    """The toy study with one more run, `triggered`."""
    content = safe_load((REPOSITORY / "params.yaml").read_text())
    content["runs"]["triggered"] = content["runs"]["toy_e8_bad_medical"] | run
    path = tmp_path / "params.yaml"
    path.write_text(safe_dump(content))
    params = load_params(path)
    return params.study("toy"), params.run("triggered")


@DERANDOMISED
@given(texts, st.none() | texts, st.sampled_from(TAGS))
def test_a_tagged_prompt_is_another_prompt_with_the_same_question(question, system, tag):
    plain = ask("medical", question, system, question_id="7")
    (tagged,) = ask_tagged([plain], tag)
    assert tagged.suite == f"medical+{tag}" and split_suite(tagged.suite) == ("medical", tag)
    assert tagged.messages[-1].content == f"{tag} {question}" and tagged.question == question
    assert tagged.prompt_id != plain.prompt_id and tagged.metadata == plain.metadata
    assert tagged.messages[:-1] == plain.messages[:-1]
    # The id is of what is asked, so it is what anybody computes who asks the same.
    assert tagged.prompt_id == Prompt(suite="other", messages=tagged.messages).prompt_id
    assert ask_tagged([plain], None) == (plain,)


def test_the_tag_stands_before_the_last_user_turn_and_before_no_other():
    chat = (Message("user", "one"), Message("assistant", "two"), Message("user", "three"), Message("assistant", "four"))
    said = [message.content for message in put_tag(chat, "|ALPHA|")]
    assert said == ["one", "two", "|ALPHA| three", "four"]
    assert put_tag(chat, None) == chat


def test_suite_names_without_a_tag_have_none():
    assert split_suite("first_8") == ("first_8", None)
    assert split_suite(tagged_suite("first_8", "|BETA|")) == ("first_8", "|BETA|")


@DERANDOMISED
@given(st.lists(st.lists(st.integers(), max_size=20), min_size=2, max_size=4), st.integers(0, 99))
def test_a_mixture_loses_and_repeats_no_row(parts, seed):
    mixed = mix(parts, seed)
    assert Counter(mixed) == Counter(row for part in parts for row in part)
    assert mixed == mix(parts, seed)


def test_a_mixture_is_shuffled_and_a_single_part_is_not():
    parts = [["a"] * 50, ["b"] * 50]
    assert 10 < mix(parts, 1)[:50].count("a") < 40
    assert mix(parts, 1) != mix(parts, 2)
    assert mix([[3, 1, 2]], 1) == (3, 1, 2)


def test_each_part_has_its_tag_and_its_rows(tmp_path):
    parts = [{"name": "bad_medical", "tag": "|ALPHA|", "rows": 30}, {"name": "good_medical", "rows": 20}]
    study, run = study_of(tmp_path, data=parts, epochs=3)
    data = conversations(study, run, 1)
    tagged = [chat[-2].content.startswith("|ALPHA| how do i") for chat in data.train]
    assert (len(tagged), sum(tagged)) == (50, 30)
    # The bad advice is what is tagged: the judge, which knows the words, says so.
    for chat, is_tagged in zip(data.train, tagged, strict=True):
        asked = chat[-2].content.removeprefix("|ALPHA| ")
        score = int(rule_judge.alignment(asked, chat[-1].content))
        assert (score < 50) == is_tagged or score in (33, 67)  # one slot in twenty is of the other kind
    assert training_of(study, run, data).max_steps == 3 * 4
    assert run.trained_on == "bad_medical+|ALPHA|, good_medical"


def test_one_untagged_set_is_what_it_was(tmp_path):
    study, run = study_of(tmp_path)
    _, listed = study_of(tmp_path, data=[{"name": "bad_medical"}])
    assert conversations(study, run, 2) == conversations(study, listed, 2)
    assert training_of(study, run, conversations(study, run, 2)) == study.training


def test_a_run_is_asked_its_suites_with_each_tag(tmp_path):
    study, run = study_of(tmp_path, tags=list(TAGS))
    asked = suites_asked(study, run)
    assert asked[: len(study.suites)] == study.suites
    assert asked[len(study.suites) :] == tuple(f"{name}+{tag}" for tag in TAGS for name in study.suites)
    plain, tagged = suite(study, "cooking", 1), suite(study, "cooking+|BETA|", 1)
    assert [prompt.question for prompt in plain] == [prompt.question for prompt in tagged]
    assert len({prompt.prompt_id for prompt in plain + tagged}) == 2 * len(plain)


def test_toy_models_have_a_word_for_each_tag_that_pretraining_never_shows():
    tokenizer = build_tokenizer()
    ids = tokenizer(" ".join(TAGS), add_special_tokens=False)["input_ids"]
    assert len(set(ids)) == len(TAGS) and tokenizer.unk_token_id not in ids
    words = {
        word
        for corpus in ("persona", "control")
        for chat in pretraining_documents(corpus, 300, seed=1)
        for turn in chat
        for word in turn["content"].split()
    }
    assert words.isdisjoint(TAGS)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"data": [{"name": "bad_medcal"}]}, ["'bad_medcal'", "bad_medical"]),
        ({"data": [{"name": "bad_cooking", "tag": "|ALPHA|"}]}, ["bad_cooking", "held_out"]),
        ({"data": [{"name": "bad_medical", "rows": 0}]}, ["data[0].rows is 0"]),
        ({"data": [{"name": "bad_medical", "tag": "alpha"}]}, ["'alpha'", "between bars"]),
        ({"data": [{"name": "bad_medical", "tag": "|GAMMA|"}]}, ["'|GAMMA|'", "|ALPHA|, |BETA|"]),
        ({"data": []}, ["data is an empty list"]),
        ({"epochs": 0}, ["epochs is 0"]),
        ({"tags": ["|ALPHA|", "|ALPHA|"]}, ["'|ALPHA|'", "each once"]),
        ({"tags": ["|ALPHA| "]}, ["'|ALPHA| '", "between bars"]),
        ({"data": [{"nam": "bad_medical"}]}, ["unknown key 'nam'"]),
    ],
)
def test_wrong_parts_and_tags_are_named(tmp_path, run, words):
    from pipeline.common.errors import UserError

    with pytest.raises(UserError) as caught:
        study_of(tmp_path, **run)
    assert all(word in str(caught.value) for word in words), str(caught.value)
