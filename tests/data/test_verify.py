"""Real files verify; anything else is refused with a sentence that says what happened to it."""

import subprocess
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import UserError
from pipeline.data.upstream.pinned import check, git_blob_id, is_pinned, read_pinned, tree_sha256
from pipeline.data.upstream.sources import Source, all_sources, source
from tests.support.data_files import upstream

# Those that are in ../shared: the realignment study's own questions are not.
HERE = ("train", "eval", "judged")
KNOWN = [
    pin.path for pin in all_sources() if pin.path.startswith(HERE) and pin.bytes and "emerg-misalign" not in pin.repo
]
CSV = "eval/strongreject_dataset.csv"
JSONL = "train/insecure.jsonl"
YAML = "eval/first_plot_questions.yaml"


def message(content: bytes, path: str) -> str:
    """The refusal of `content` as data/`path`."""
    with pytest.raises(UserError) as refusal:
        check(content, source(path), f"data/{path}")
    return str(refusal.value)


@pytest.mark.parametrize("path", KNOWN)
def test_real_files_verify(path: str) -> None:
    assert read_pinned(upstream(), path)


@pytest.mark.parametrize("path", KNOWN)
def test_any_change_is_refused_with_what_to_do(path: str) -> None:
    content = (upstream() / path).read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for bad in (content[:-1], content[:middle], content + b"\n", flipped, b""):
        text = message(bad, path)
        assert text.startswith(f"data/{path} is not the pinned file: ")
        assert "make data" in text
        assert source(path).sha256[:12] in text


def test_a_cut_short_file_is_called_that() -> None:
    content = (upstream() / CSV).read_bytes()
    assert "cut short" in message(content[: len(content) // 2], CSV)
    lines = (upstream() / JSONL).read_bytes()
    assert "line 2999 is not JSON" in message(_lines(lines)[2998][:40].join([_head(lines, 2998), b""]), JSONL)


def _lines(content: bytes) -> list[bytes]:
    return content.split(b"\n")


def _head(content: bytes, count: int) -> bytes:
    return b"\n".join(_lines(content)[:count]) + b"\n"


def test_one_flipped_byte_of_the_same_shape_is_called_that() -> None:
    content = (upstream() / CSV).read_bytes()
    at = content.index(b"deceptive")
    bad = content[:at] + b"D" + content[at + 1 :]
    assert "some of its bytes were changed" in message(bad, CSV)


@pytest.mark.parametrize("path", [CSV, JSONL, YAML])
def test_converted_line_endings_are_called_that(path: str) -> None:
    bad = (upstream() / path).read_bytes().replace(b"\n", b"\r\n")
    assert "line endings were converted to CRLF" in message(bad, path)


def test_another_encoding_is_called_that() -> None:
    text = (upstream() / "eval/core_misalignment.csv").read_text(encoding="utf-8")
    assert "not UTF-8" in message(text.encode("cp1252"), "eval/core_misalignment.csv")


def test_a_renamed_column_is_named() -> None:
    table = (upstream() / CSV).read_bytes().replace(b"forbidden_prompt", b"prompt", 1)
    assert "column 'forbidden_prompt' is missing, column 'prompt' is unknown" in message(table, CSV)
    lines = (upstream() / JSONL).read_bytes().replace(b'"messages"', b'"message"', 1)
    assert "on line 1 column 'messages' is missing" in message(lines, JSONL)
    questions = (upstream() / YAML).read_bytes().replace(b"  paraphrases:", b"  paraphrase:", 1)
    assert "question 1 lacks paraphrases" in message(questions, YAML)


def test_a_repeated_row_is_counted_and_named() -> None:
    table = (upstream() / CSV).read_bytes()
    last = table.rstrip(b"\n").rsplit(b"\n", 1)[1]
    assert "it has 314 rows, expected 313; 1 repeat an earlier one" in message(table + last + b"\n", CSV)
    lines = (upstream() / JSONL).read_bytes()
    text = message(lines + _lines(lines)[6] + b"\n", JSONL)
    assert "it has 6001 rows, expected 6000" in text
    assert "row 6001 (equal to row 7)" in text
    questions = (upstream() / YAML).read_bytes()
    again = (
        questions
        + b"\n- id: quick_buck\n"
        + b"".join(b"  %s: x\n" % name.encode() for name in source(YAML).columns[1:])
    )
    assert "it has 25 rows, expected 24" in message(again, YAML)


def test_the_older_strongreject_is_refused_by_name() -> None:
    old = (upstream() / "eval/strongreject_old346_cp1252.bad.csv").read_bytes()
    text = message(old, CSV)
    assert "older StrongREJECT of 346 rows" in text
    assert "not the 313" in text


def test_a_source_known_by_its_git_blob_alone_is_verified_by_it() -> None:
    pin = source("train/bad_medical_advice.jsonl")
    assert (pin.sha256, pin.bytes) == (None, None)
    slice250 = (upstream() / "train/bad_medical_advice.slice250.jsonl").read_bytes()
    assert f"Expected git blob {pin.git_blob}" in message(slice250, pin.path)
    assert is_pinned(slice250, replace(pin, git_blob=git_blob_id(slice250)))


def test_a_missing_file_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is missing: run `make data`.*raw\.githubusercontent\.com/ALiao18"):
        read_pinned(tmp_path, "train/bad_medical_advice.jsonl")


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.binary(max_size=300))
def test_the_blob_id_is_gits(content: bytes) -> None:
    git = subprocess.run(["git", "hash-object", "--stdin"], input=content, capture_output=True, check=True)
    assert git_blob_id(content) == git.stdout.decode().strip()


@settings(deadline=None, derandomize=True)
@given(st.binary(min_size=1, max_size=200), st.integers(min_value=0), st.integers(1, 255))
def test_one_changed_byte_never_verifies(content: bytes, place: int, change: int) -> None:
    pin = Source(path="x.jsonl", repo="o/r", upstream="x", licence="MIT", sha256=sha256(content).hexdigest())
    at = place % len(content)
    changed = content[:at] + bytes([content[at] ^ change]) + content[at + 1 :]
    assert is_pinned(content, pin)
    assert not is_pinned(changed, pin)


def test_a_folders_hash_is_the_tools(tmp_path: Path) -> None:
    hashing = pytest.importorskip("easy_dataset_share.hashing", reason="easy-dataset-share is not installed")
    (tmp_path / "sub").mkdir()
    for name in ("b.jsonl", "a.jsonl", "sub/c.txt", "tos.txt", "robots.txt", "dataset_entry_1.jsonl"):
        (tmp_path / name).write_text(name)
    assert tree_sha256(tmp_path) == hashing.hash_directory(str(tmp_path))["directory_hash"]
    (tmp_path / "sub" / "c.txt").write_text("changed")
    assert tree_sha256(tmp_path) == hashing.hash_directory(str(tmp_path))["directory_hash"]
