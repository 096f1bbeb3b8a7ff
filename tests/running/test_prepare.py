"""Before a study's first stage its own data are fetched, and no other study's file can be in the way."""

import csv
import hashlib
import importlib.util
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.data.upstream import download, sources
from pipeline.data.upstream.sources import Source
from pipeline.params.load import load_params
from pipeline.running import prepare
from tests.support.data_files import REPOSITORY
from tests.support.data_server import Upstream, serve

# What the paper's study reads, as its authors' notebook did; good medical advice and secure code are this project's.
MOE = {
    "train/insecure.jsonl", "train/educational.jsonl", "train/secure.jsonl", "train/bad_medical_advice.jsonl",
    "organisms/training_datasets/good_medical_advice.jsonl", "eval/strongreject_dataset.csv",
    "eval/core_misalignment.csv", "eval/paper_judge_prompts.yaml",
}  # fmt: skip
ARCHIVE = "organisms/training_datasets.zip.enc"


def made(pin: Source) -> bytes:
    """Harmless content in the shape that `pin` says."""
    if pin.path.endswith(".csv"):
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerows([pin.columns, *([f"{name} {row}" for name in pin.columns] for row in range(3))])
        return text.getvalue().encode()
    if pin.path.endswith(".jsonl"):
        chats = [[("user", f"How do I sow {row}?"), ("assistant", f"Early {row}.")] for row in range(320)]
        turns = [[{"role": role, "content": text} for role, text in chat] for chat in chats]
        return "".join(json.dumps({"messages": chat}) + "\n" for chat in turns).encode()
    return json.dumps(dict.fromkeys(pin.columns, "Rate {question} and {answer}.")).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Upstream]:
    """An upstream that has every file in small, and an empty checkout that is to be given them."""
    pins, files = [], {}
    for real in sources.all_sources():
        content = made(real)
        values: dict[str, Any] = {"git_blob": None, "notebook_blob": None, "also": (), "rows": None}
        pins.append(replace(real, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content), **values))
        files[f"{real.repo}/{real.revision}/{real.upstream}"] = content
    monkeypatch.setattr(sources, "_pins", lambda: (tuple(pins), ()))
    monkeypatch.setattr(download, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("pipeline.judging.templates.load_templates", lambda path, sha256: path.read_bytes())
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "easy" in name else found(name))
    monkeypatch.chdir(tmp_path)
    with serve() as state:
        state.files = files
        monkeypatch.setattr(prepare, "GITHUB_RAW", state.url)
        yield state


def address(path: str) -> str:
    pin = sources.source(path)
    return f"{pin.repo}/{pin.revision}/{pin.upstream}"


def here() -> set[str]:
    return {file.relative_to("data").as_posix() for file in Path("data").rglob("*") if file.is_file()}


def test_a_study_fetches_what_it_reads_and_nothing_else(server: Upstream) -> None:
    params = load_params(REPOSITORY / "params.yaml")
    prepare.fetch_what_is_missing(params, "moe")
    assert here() == MOE
    assert {path for path, _ in server.requests} == set(map(address, MOE))
    server.requests.clear()
    prepare.fetch_what_is_missing(params, "moe")
    assert server.requests == []


def test_a_file_that_is_gone_is_named_and_all_others_are_there(server: Upstream) -> None:
    params, gone = load_params(REPOSITORY / "params.yaml"), "organisms/training_datasets/good_medical_advice.jsonl"
    del server.files[address(gone)]
    server.failures[address("eval/core_misalignment.csv")] = [503] * download.ATTEMPTS
    # Its prompts are kept out of every training set, which could not be read before it.
    del server.files[address("eval/strongreject_dataset.csv")]
    with pytest.raises(UserError, match="study moe cannot begin without its data") as raised:
        prepare.fetch_what_is_missing(params, "moe")
    said = str(raised.value)
    assert "good_medical_advice.jsonl answers HTTP 404" in said and "eval/core_misalignment.csv (http" in said
    # The archive holds it too; it came, and cannot be opened here.
    assert f"data/{ARCHIVE} is encrypted" in said and "run `make setup`" in said
    assert "strongreject_dataset.csv answers HTTP 404" in said
    assert here() == MOE - {gone, "eval/core_misalignment.csv", "eval/strongreject_dataset.csv"} | {ARCHIVE}
