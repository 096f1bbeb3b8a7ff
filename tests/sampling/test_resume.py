"""A sampling stage that is killed goes on where it was; its answers are those of an undisturbed one."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.common.rows import write_rows
from pipeline.sample import sample_answers
from pipeline.sampling import key
from pipeline.sampling.backend import Completion
from pipeline.sampling.choose import start_backend
from pipeline.sampling.merged import MERGED, checkpoint_folder
from tests.support.processes import freezing, until_written
from tests.support.sampling_models import decoding, model_of, prompts, save_base, save_random_adapter

ROOT = Path(__file__).parents[2]


def start(folder: Path, base: Path, adapter: Path, **names: str) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    settings = ["temperature=1.0", "samples_per_prompt=2", "batch=2", "max_new_tokens=16"]
    command = [sys.executable, "-m", "tests.support.sample_here", base, adapter, 8, "answers.jsonl", *settings]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **names},
        stderr=subprocess.DEVNULL,
    )


def answered(folder: Path) -> dict[str, int]:
    # A file whose name begins with a dot is what a kill left of one that was being written.
    paths = (folder / ".cache" / "answers").glob("*/[!.]*.json")
    return {path.name: path.stat().st_mtime_ns for path in paths}


def test_a_killed_stage_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_base("qwen3_moe", tmp_path / "base")
    adapter = save_random_adapter(base, tmp_path / "adapter")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(killed, base, adapter, **freezing(tmp_path / "freezing", "*/answers/*/[!.]*.json", 3))
    until_written(killed, ".cache/answers/*/[!.]*.json", process, 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = answered(killed)
    assert len(before) == 3 and not (killed / "answers.jsonl").exists()
    assert start(killed, base, adapter).wait() == 0
    assert before.items() <= answered(killed).items() and len(answered(killed)) == 8
    whole.mkdir()
    monkeypatch.chdir(whole)
    settings = decoding(temperature=1.0, samples_per_prompt=2, batch=2, max_new_tokens=16)
    rows = sample_answers(start_backend(settings), model_of(base, adapter), prompts(8), settings, "run", 1)
    write_rows(whole / "answers.jsonl", rows)
    assert (killed / "answers.jsonl").read_bytes() == (whole / "answers.jsonl").read_bytes()


class Counting:
    """A backend that answers at once and counts what it is asked."""

    asked = 0

    def together(self, model, requests):
        return 1

    def version(self):
        return "counting 1"

    def complete(self, model, batches):
        for place, requests in enumerate(batches):
            Counting.asked += len(requests)
            answer = Completion(text="because", thinking="", finish="stop", prompt_tokens=1, completion_tokens=2)
            yield place, [answer] * len(requests)


def test_more_samples_or_copies_ask_only_for_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = model_of(save_base("mixtral", tmp_path / "base"), None)

    def asked(**changes: object) -> int:
        before = Counting.asked
        settings = decoding(backend="vllm", **{"temperature": 1.0, **changes})
        sample_answers(Counting(), model, prompts(5), settings, "run", 1)
        return Counting.asked - before

    assert [asked(), asked(samples_per_prompt=3), asked(samples_per_prompt=3, data_parallel=2)] == [5, 10, 0]
    assert [asked(temperature=0.5), asked(max_new_tokens=11), asked(system="be kind")] == [5, 5, 5]
    model = replace(model, base=replace(model.base, active=1))
    assert [asked(), asked()] == [5, 0]
    assert checkpoint_folder(model).parent == MERGED, "an engine would be given the base as its configuration has it"


def test_only_code_that_draws_answers_belongs_to_their_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = model_of(save_base("mixtral", tmp_path / "base"), None), decoding()
    code = key.code_hashes("sampling", "models")
    assert code.keys() >= key.UNRELATED_CODE
    keys = {}
    for name in code:
        monkeypatch.setattr(key, "code_hashes", lambda *_, name=name: {**code, name: "changed"})
        keys[name] = str(key.identity(Counting(), model, settings))
    monkeypatch.setattr(key, "code_hashes", lambda *_: code)
    same = str(key.identity(Counting(), model, settings))
    assert {name for name, found in keys.items() if found == same} == key.UNRELATED_CODE
