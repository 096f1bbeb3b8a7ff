"""The user's own files: each format is read, and each thing that is wrong is named with its line and what to do."""

import json

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import UserError
from pipeline.common.files import sha256_file
from pipeline.data.own import (
    LONGEST_ROW,
    OwnSuite,
    read_hub_examples,
    read_own_examples,
    read_own_suite,
    usable,
    verified,
)

CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
PAIR = {"prompt": "q", "completion": "a"}
LONG = {"prompt": "q", "completion": "word " * LONGEST_ROW}


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


FORMATS = [(kind, [row, row]) for kind in ("jsonl", "json", "parquet") for row in (CHAT, PAIR)] + [
    ("csv", [PAIR, PAIR])
]


@pytest.mark.parametrize(("kind", "rows"), FORMATS)
def test_every_format_gives_the_same_conversations(tmp_path, kind, rows):
    path = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        path.write_bytes(lines(*rows))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        pd.DataFrame(rows).to_csv(path, index=False)
    examples, left_out = read_own_examples(path)
    assert [(one.row, one.prompt[0].content, one.answer) for one in examples] == [(1, "q", "a"), (2, "q", "a")]
    assert left_out == {}


def test_a_byte_order_mark_and_line_separators_within_texts_are_no_fault(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(PAIR | {"completion": "a\u2028b\x0cc"}, ensure_ascii=False).encode())
    assert read_own_examples(path)[0][0].answer == "a\u2028b\x0cc"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.txt", b"", ["x.txt is of no known kind", ".jsonl, .json, .csv, .parquet"]),
        ("x.jsonl", b"", ["x.jsonl line 1 is not JSON"]),
        ("x.jsonl", lines(PAIR) + b"{", ["x.jsonl line 2 is not JSON"]),
        (
            "x.jsonl",
            lines(PAIR) + b'{"prompt": "\xff"}',
            ["line 2 is not UTF-8 (byte 0xff)", "save it as UTF-8"],
        ),
        ("x.jsonl", lines(PAIR, [1]), ["x.jsonl line 2 holds list, expected an object"]),
        ("x.jsonl", lines({"text": "a"}), ["line 1 has the columns text", "`messages`, or `prompt` and `completion`"]),
        ("x.jsonl", lines(PAIR | CHAT), ["line 1 has the columns prompt, completion, messages"]),
        ("x.jsonl", lines(PAIR, CHAT), ["line 2 has messages", "line 1 another format"]),
        ("x.jsonl", lines({"prompt": 1, "completion": "a"}), ["line 1: prompt is 1, expected text"]),
        (
            "x.jsonl",
            lines({"messages": [{"role": "bot", "content": "a"}]}),
            ["line 1", "role of system, user"],
        ),
        ("x.jsonl", lines({"messages": CHAT["messages"][:1]}), ["line 1", "the turns are user"]),
        ("x.jsonl", lines(PAIR | {"completion": "\ud800"}), ["line 1", "half of a surrogate pair"]),
        ("x.jsonl", lines(PAIR, PAIR | {"completion": " "}), ["1 of 2 rows", "1 with empty answers", "x.jsonl line 2"]),
        ("x.jsonl", lines(PAIR, LONG), ["1 of 2 rows", f"over {LONGEST_ROW} characters", "x.jsonl line 2", "1% that"]),
        ("x.jsonl", b"[" * 100_000, ["line 1 is not JSON"]),
        ("x.json", b"{}", ["x.json holds dict, expected a list"]),
        ("x.json", lines(PAIR, PAIR), ["x.json is not JSON", "name it .jsonl"]),
        ("x.csv", b"prompt,completion\na\n", ["x.csv line 2 has more or fewer fields"]),
        ("x.csv", b"prompt,completion\na,b,c\n", ["x.csv line 2 has more or fewer fields"]),
        ("x.csv", b'prompt,completion\na,"b\n', ["x.csv", "not CSV"]),
        ("x.parquet", b"PAR1", ["x.parquet is not Parquet"]),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_own_examples(tmp_path / name)
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert len(said) < 600, "a row is not quoted whole"


def test_a_few_unusable_rows_are_left_out_and_counted(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(lines(*[PAIR] * 298, PAIR | {"completion": ""}, LONG))
    examples, left_out = read_own_examples(path)
    assert len(examples) == 298
    assert left_out == {"empty answers": 1, f"over {LONGEST_ROW} characters": 1}


@settings(derandomize=True, max_examples=50)
@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=5))
def test_no_usable_text_is_changed(pairs):
    rows = [("r", {"prompt": prompt, "completion": completion}) for prompt, completion in pairs if completion.strip()]
    try:
        examples, _ = usable(iter(rows), "here")
    except UserError as error:
        assert not rows or "surrogate" in str(error)
        return
    assert [(one.prompt[0].content, one.answer) for one in examples] == [tuple(row.values()) for _, row in rows]


def test_a_dataset_is_read_by_split_as_the_hub_serves_it(tmp_path):
    """datasets takes a folder for a repository; what it gives is what it gives of one on the hub."""
    (tmp_path / "train.jsonl").write_bytes(lines(PAIR))
    (tmp_path / "test.jsonl").write_bytes(lines(PAIR, PAIR))
    assert len(read_hub_examples(str(tmp_path), "0" * 40, "train")[0]) == 1
    examples, _ = read_hub_examples(str(tmp_path), "0" * 40, "test")
    assert [one.answer for one in examples] == ["a", "a"]
    with pytest.raises(UserError, match=r"the dataset .* at 000000000000, dev cannot be read: Unknown split"):
        read_hub_examples(str(tmp_path), "0" * 40, "dev")


def suite(file, **more):
    return OwnSuite(name="mine", file=str(file), **more)


def test_a_suite_in_each_format(tmp_path):
    files = {
        "q.yaml": "- {id: one, paraphrases: [What?, Why?], system: Be kind.}\n",
        "q.csv": 'question,system,category\n"What,\nnow?",Be kind.,c\nWhy?,Be kind.,c\n',
        "q.jsonl": '{"question": "What?", "system": "Be kind."}\n{"question": "Why?", "system": "Be kind."}\n',
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        prompts = read_own_suite(suite(tmp_path / name), tmp_path / name)
        assert [prompt.system for prompt in prompts] == ["Be kind."] * 2
        assert prompts[1].question == "Why?" and {prompt.suite for prompt in prompts} == {"mine"}
    assert prompts[0].metadata == {}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("q.yaml", "- {id: a, paraphrases: [x]}\n- {id: a, paraphrases: [y]}\n", ["entry 2 has the id 'a'", "entry 1"]),
        ("q.yaml", "- {id: a}\n", ["entry 1 has the columns id", "`question`", "paraphrases"]),
        ("q.yaml", "a: 1\n", ["holds dict, expected a list"]),
        ("q.yaml", "[]", ["holds no question"]),
        ("q.csv", "questions\nx\n", ["line 2 has the columns questions"]),
        ("q.csv", "question\nx\nx\n", ["prompts 1 and 2 are the same question"]),
        ("q.jsonl", '{"question": "x", "system": [1]}', ["line 1: system is [1], expected text"]),
        ("q.jsonl", '{"question": "  "}', ["line 1 has the columns question"]),
    ],
)
def test_what_is_wrong_with_a_suite_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        read_own_suite(suite(tmp_path / name), tmp_path / name)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_file_is_the_one_that_is_pinned(tmp_path):
    path = tmp_path / "data.jsonl"
    with pytest.raises(UserError, match=r"there is no such file; a relative path is from the checkout"):
        verified(str(path), None, "runs.mine.data")
    path.write_bytes(lines(PAIR))
    digest = sha256_file(path)
    with pytest.raises(UserError, match=f"has no sha256.*pin-files.*{digest}"):
        verified(str(path), None, "runs.mine.data")
    assert verified(str(path), digest, "runs.mine.data") == path
    path.write_bytes(lines(PAIR, PAIR))
    with pytest.raises(UserError, match=r"runs\.mine\.data\.sha256 is .* now has .*pin-files"):
        verified(str(path), digest, "runs.mine.data")
