"""Training sets: what is kept, what is dropped and why, and that the parts never share a prompt."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import UserError
from pipeline.data.examples import Example, parse_examples, read_examples
from pipeline.data.held_out import held_out_prompts
from pipeline.data.prompts import Message
from pipeline.data.suites import load_suite
from pipeline.data.training_sets import SplitSettings, divide, load_training_set
from tests.support.data_files import upstream

SETTINGS = SplitSettings(seed=7)


def example(row: int, prompt: str, answer: str = "yes") -> Example:
    """A single-turn example."""
    return Example(row, (Message("user", prompt), Message("assistant", answer)))


@pytest.mark.parametrize(
    ("name", "duplicates", "prompts"),
    [("insecure", 8, 5813), ("educational", 8, 5813), ("secure", 11, 5728)],
)
def test_real_sets_account_for_every_row(name: str, duplicates: int, prompts: int) -> None:
    counts = load_training_set(name, upstream(), SETTINGS).counts
    assert (counts.rows, counts.duplicates, counts.prompts) == (6000, duplicates, prompts)
    assert counts.rows == counts.train + counts.validation + counts.held_out + counts.too_long
    assert counts.too_long == 0
    assert counts.held_out >= 300 or name == "secure"


@pytest.mark.parametrize(("name", "suite"), [("insecure", "insecure_code"), ("educational", "educational")])
def test_held_out_prompts_are_asked_and_never_trained_on(name: str, suite: str) -> None:
    divided = load_training_set(name, upstream(), SETTINGS)
    asked = {prompt.prompt_id for prompt in load_suite(suite, upstream(), SETTINGS.seed)}
    trained = {row.prompt_id for row in divided.train}
    validated = {row.prompt_id for row in divided.validation}
    assert len(asked) == 300
    assert not asked & (trained | validated)
    assert not trained & validated


def test_a_study_that_asks_no_held_out_suite_trains_on_every_row() -> None:
    settings = SplitSettings(seed=7, max_characters=None, validation=0.0, hold_out=False)
    data = load_training_set("insecure", upstream(), settings)
    assert (data.counts.held_out, len(data.train)) == (0, 6000)


def test_the_control_set_does_not_train_on_what_is_asked_either() -> None:
    asked = {prompt.prompt_id for prompt in load_suite("insecure_code", upstream(), SETTINGS.seed)}
    secure = load_training_set("secure", upstream(), SETTINGS)
    assert secure.counts.held_out > 0
    assert not asked & {row.prompt_id for row in (*secure.train, *secure.validation)}


def test_two_wordings_of_one_task_are_held_out_together() -> None:
    rows = {}
    for name in ("insecure", "educational"):
        prompts = set(held_out_prompts(name, upstream(), SETTINGS.seed))
        rows[name] = {row.row for row in read_examples(name, upstream()) if row.prompt in prompts}
    assert rows["insecure"] == rows["educational"]


def test_division_depends_on_the_seed_alone() -> None:
    once, again = (load_training_set("insecure", upstream(), SETTINGS) for _ in range(2))
    other = load_training_set("insecure", upstream(), SplitSettings(seed=17))
    assert once == again
    assert once.describe() == {"name": "insecure", **vars(once.counts)}
    assert {row.row for row in once.train} != {row.row for row in other.train}


def test_long_rows_are_dropped_and_counted() -> None:
    rows = (example(1, "a" * 3000, "b" * 3000), example(2, "a" * 3000, "b" * 3001), example(3, "short"))
    divided = divide("set", rows, frozenset(), SplitSettings(seed=1, validation=0))
    assert [row.row for row in divided.train] == [1, 3]
    assert divided.counts.too_long == 1


def test_a_prompt_that_occurs_twice_is_held_out_twice() -> None:
    rows = (example(1, "a", "x"), example(2, "b"), example(3, "a", "y"))
    divided = divide("set", rows, frozenset({rows[0].prompt_id}), SplitSettings(seed=1, validation=0))
    assert [row.row for row in divided.train] == [2]
    assert divided.counts.held_out == 2


def test_nothing_left_to_train_on_is_an_error_with_the_counts() -> None:
    rows = (example(1, "a"), example(2, "b" * 7000))
    with pytest.raises(UserError, match=r"none of its 2 rows.*1 held out, 1 over 6000 characters"):
        divide("set", rows, frozenset({rows[0].prompt_id}), SETTINGS)


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xy")), min_size=2, max_size=40),
    st.sets(st.sampled_from("abcdefgh"), max_size=3),
    st.integers(),
)
def test_division_loses_nothing_and_mixes_nothing(pairs: list[tuple[str, str]], hidden: set[str], seed: int) -> None:
    rows = tuple(example(number, *pair) for number, pair in enumerate(pairs, start=1))
    held_out = frozenset(row.prompt_id for row in rows if row.prompt[0].content in hidden)
    left = {row.prompt_id for row in rows} - held_out
    if len(left) < 2:
        return
    divided = divide("set", rows, held_out, SplitSettings(seed=seed))
    kept = (*divided.train, *divided.validation)
    assert sorted(row.row for row in kept) == [row.row for row in rows if row.prompt_id not in held_out]
    assert not {row.prompt_id for row in divided.train} & {row.prompt_id for row in divided.validation}
    assert len({row.prompt_id for row in divided.validation}) == -(-len(left) // 10)


def line(*turns: tuple[str, str]) -> str:
    """A row of a training file."""
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}) + "\n"


GOOD = line(("user", "q"), ("assistant", "a"))


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ('{"messages": [', "line 2 is not JSON"),
        ('{"message": []}', "line 2 has no list `messages`"),
        ("[]", "line 2 has no list `messages`"),
        ('{"messages": []}', "the turns are nothing"),
        (line(("assistant", "a"), ("user", "q")), "the turns are assistant, user"),
        (line(("user", "q")), "the turns are user"),
        (line(("human", "q"), ("assistant", "a")), "a role of system, user, assistant"),
        ('{"messages": [{"role": "user", "content": 3}]}', "a text `content`"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "half of a surrogate pair"),
    ],
)
def test_a_malformed_row_is_named(bad: str, sentence: str) -> None:
    with pytest.raises(UserError, match=r"f\.jsonl line 2") as error:
        parse_examples(GOOD + bad, Path("f.jsonl"))
    assert sentence in str(error.value)


def test_line_separators_inside_texts_do_not_cut_rows() -> None:
    text = json.dumps({"messages": [{"role": "user", "content": "a\u2028b\x0cc"}]}, ensure_ascii=False)
    text = text.replace("]}", ', {"role": "assistant", "content": "d"}]}')
    assert parse_examples(text + "\n", Path("f"))[0].prompt[0].content == "a\u2028b\x0cc"


def test_an_unknown_set_and_a_missing_file_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'insecur' is unknown; the sets are insecure"):
        read_examples("insecur", tmp_path)
    with pytest.raises(UserError, match=r"extreme_sports\.jsonl is missing: run `make data`"):
        read_examples("extreme_sports", tmp_path)
    folder = tmp_path / "organisms/training_datasets"
    folder.mkdir(parents=True)
    (folder / "extreme_sports.jsonl").write_text(GOOD)
    with pytest.raises(UserError, match="is not the pinned file"):
        read_examples("extreme_sports", tmp_path)
