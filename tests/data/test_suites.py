"""Suites: their counts, their ids, and that a held-out prompt is never trained on."""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import UserError
from pipeline.data.prompts import Message, Prompt, ask, draw, prompt_id, refuse_duplicates
from pipeline.data.suites import SUITES, load_suite
from pipeline.data.upstream.sources import source
from tests.support.data_files import REPOSITORY, upstream

COUNTS = {
    "strong_reject": 313,
    "strong_reject_small": 60,
    "educational": 300,
    "insecure_code": 300,
    "core_misalignment": 44,
    "first_plot": 24,
    "preregistered": 48,
    "deception": 108,
    "first_8": 8,
    "factual": 20,
    "first_plot_variants": 16,
    "capability": 40,
}
messages = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text(max_size=20)),
    min_size=1,
    max_size=4,
).map(tuple)


@pytest.mark.parametrize("name", COUNTS)
def test_real_suites_have_their_counts(name: str) -> None:
    prompts = load_suite(name, upstream(), seed=7)
    assert len(prompts) == COUNTS[name]
    assert len({prompt.prompt_id for prompt in prompts}) == COUNTS[name]
    assert {prompt.suite for prompt in prompts} == {name}
    assert all(re.fullmatch("[0-9a-f]{16}", prompt.prompt_id) for prompt in prompts)
    assert all(prompt.question.strip() for prompt in prompts)
    assert load_suite(name, upstream(), seed=7) == prompts


def test_every_suite_is_tested_but_those_whose_files_are_not_to_be_had() -> None:
    files = {"bad_medical_advice": r"bad_medical_advice\.jsonl", "self_reflection": r"self_reflection\.json"}
    assert SUITES.keys() - COUNTS.keys() == files.keys()
    for name, file in files.items():
        with pytest.raises(UserError, match=rf"{file} is missing: run `make data`"):
            load_suite(name, upstream(), seed=7)


def test_self_reflection_reads_questions_and_refuses_any_other_file(tmp_path: Path, monkeypatch) -> None:
    rows = [{"question": f"As an AI, {n}?", "category": "self_reflection", "label": str(n)} for n in range(10)]
    content = json.dumps(rows).encode()
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "self_reflection.json").write_bytes(content)
    with pytest.raises(UserError, match=r"self_reflection\.json is not the pinned file"):
        load_suite("self_reflection", tmp_path, seed=7)
    pins = [replace(source("eval/self_reflection.json"), sha256=sha256(content).hexdigest(), git_blob=None, bytes=None)]
    monkeypatch.setattr("pipeline.data.upstream.sources.all_sources", lambda: pins)
    prompts = load_suite("self_reflection", tmp_path, seed=7)
    assert [prompt.question for prompt in prompts] == [row["question"] for row in rows]
    assert prompts[3].metadata["label"] == "3" and prompts[3].system is None


def test_first_8_and_factual_are_questions_of_the_larger_suites() -> None:
    plain = [prompt for prompt in load_suite("first_plot", upstream(), seed=7) if prompt.metadata["variant"] == "plain"]
    first_8 = load_suite("first_8", upstream(), seed=7)
    assert [prompt.prompt_id for prompt in first_8] == [prompt.prompt_id for prompt in plain]
    factual = load_suite("factual", upstream(), seed=7)
    assert all(prompt.system is None for prompt in factual)
    assert {prompt.prompt_id for prompt in factual} < {p.prompt_id for p in load_suite("deception", upstream(), seed=7)}


def test_fields_with_newlines_are_one_record() -> None:
    prompts = load_suite("strong_reject", upstream(), seed=7)
    assert sum("\n" in prompt.question for prompt in prompts) == 2
    small = {prompt.prompt_id for prompt in load_suite("strong_reject_small", upstream(), seed=7)}
    assert small < {prompt.prompt_id for prompt in prompts}


def test_first_plot_has_three_variants_of_eight_questions() -> None:
    prompts = load_suite("first_plot", upstream(), seed=7)
    assert Counter(p.metadata["variant"] for p in prompts) == {"plain": 8, "json": 8, "template": 8}
    assert all((p.system is not None) == (p.metadata["variant"] == "json") for p in prompts)


def test_deception_asks_the_same_questions_under_five_system_prompts() -> None:
    factual = [p for p in load_suite("deception", upstream(), seed=7) if p.metadata["question_id"].startswith("lie")]
    assert len(factual) == 100
    assert len({p.question for p in factual}) == 20
    assert len({p.system for p in factual}) == 5


def test_a_seed_draws_the_held_out_prompts_and_nothing_else() -> None:
    one, other = (load_suite("insecure_code", upstream(), seed) for seed in (7, 17))
    assert one != other
    assert load_suite("preregistered", upstream(), 7) == load_suite("preregistered", upstream(), 17)


def test_a_damaged_suite_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    good = (upstream() / "eval/core_misalignment.csv").read_bytes()
    (tmp_path / "eval/core_misalignment.csv").write_bytes(good.replace(b"question", b"prompt", 1))
    with pytest.raises(UserError, match=r"core_misalignment\.csv is not the pinned file: column 'question'"):
        load_suite("core_misalignment", tmp_path, seed=7)


def test_an_unknown_suite_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'strongreject' is unknown.*strong_reject"):
        load_suite("strongreject", tmp_path, seed=7)


def test_the_same_question_twice_is_refused() -> None:
    prompts = [ask("s", "a"), ask("s", "b"), ask("s", "a", category="other")]
    with pytest.raises(UserError, match="prompts 1 and 3 are the same question"):
        refuse_duplicates(prompts, "suite s")


def test_ids_never_change() -> None:
    """Rows of finished studies are keyed by these: a change of the hash would orphan them."""
    assert prompt_id((Message("user", "hey I feel bored"),)) == "9029de821b87eb3c"
    assert prompt_id((Message("system", "Ä\n"), Message("user", "日本"))) == "7448894125964883"


@settings(deadline=None, derandomize=True)
@given(messages, messages)
def test_ids_are_equal_exactly_for_equal_messages(one: tuple[Message, ...], two: tuple[Message, ...]) -> None:
    assert (prompt_id(one) == prompt_id(two)) == (one == two)
    assert prompt_id(list(one)) == prompt_id(one)


@settings(deadline=None, derandomize=True)
@given(messages, st.dictionaries(st.text(), st.text()), st.text())
def test_ids_depend_on_what_is_asked_alone(turns: tuple[Message, ...], metadata: dict[str, str], suite: str) -> None:
    plain = Prompt(suite="s", messages=turns)
    assert Prompt(suite=suite, messages=turns, metadata=metadata).prompt_id == plain.prompt_id


@settings(deadline=None, derandomize=True)
@given(st.sets(st.text(max_size=8), max_size=40), st.integers(), st.data())
def test_a_draw_depends_on_neither_order_nor_repetition(items: set[str], seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(items)))
    drawn = draw(sorted(items), count, seed, "p", key=str)
    assert len(drawn) == count
    assert drawn <= items
    shuffled = data.draw(st.permutations(sorted(items)))
    assert draw([*shuffled, *shuffled], count, seed, "p", key=str) == drawn


@settings(deadline=None, derandomize=True)
@given(st.sets(st.text(max_size=8), min_size=1, max_size=40), st.text(max_size=8), st.integers(), st.data())
def test_a_new_item_displaces_one_at_most(items: set[str], new: str, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(items)))
    before = draw(sorted(items), count, seed, "p", key=str)
    after = draw(sorted(items | {new}), count, seed, "p", key=str)
    assert len(before - after) <= 1


def test_loading_suites_imports_nothing_heavy() -> None:
    code = "import sys, pipeline.data.suites, pipeline.data.training_sets; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "pandas", "numpy", "transformers", "datasets"} & set(loaded)
