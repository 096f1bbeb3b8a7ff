"""What a study's provenance.json knows: attempts that failed, were killed and went on; judges; and no secret."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.__main__ import main
from pipeline.api.completions import Reply
from pipeline.api.replies import ReplyCache
from pipeline.commands import provenance
from pipeline.common import ledger
from pipeline.common.errors import UserError
from pipeline.common.files import read_json, write_json
from pipeline.common.ledger import code, note, record
from pipeline.params.load import load_params
from tests.support.processes import until

REPOSITORY = Path(__file__).parents[2]
STAGE = "train@toy_e8_bad_medical"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with params.yaml and one commit, and this process in it."""
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    (tmp_path / "dvc.lock").write_text("stages: {}\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *command]
        subprocess.run(git, cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def described(study="toy"):
    return read_json(provenance.write(load_params(), study))


def fail():
    raise ValueError("broken")


def test_attempts_accumulate_until_the_stage_is_done(checkout, monkeypatch):
    now = 100.0
    monkeypatch.setattr(ledger, "time", SimpleNamespace(monotonic=lambda: now))

    def work():
        nonlocal now
        now += 2.5

    assert record(STAGE, lambda: 1) == 1
    with pytest.raises(ValueError, match="broken"):
        record(STAGE, fail)
    assert described()["stages"][STAGE]["outcome"] == "failed"
    assert record(STAGE, work) is None
    stage = described()["stages"][STAGE]
    assert (stage["outcome"], stage["attempts"], stage["unfinished"]) == ("done", 3, 0)
    assert (stage["seconds"], stage["seconds_earlier"]) == (2.5, 0)
    record(STAGE, lambda: 0)
    again = described()["stages"][STAGE]
    assert again["attempts"] == 4 and again["seconds_earlier"] == 2.5
    assert again["seconds"] == 0, "the latest completion is what is there"
    assert "sample@toy_e8_bad_medical" in described()["stages_not_recorded"]


def test_the_backend_of_each_base_is_known_and_two_of_one_base_are_said(checkout, capsys):
    runs = {"toy_e8_base": "transformers", "toy_e8_bad_medical": "vllm 1", "toy_e16_base": "transformers"}
    for run, backend in runs.items():
        record(f"sample@{run}", lambda backend=backend: note(backend=backend))
    assert described()["sampled_by"] == {
        "e8": {"transformers": ["toy_e8_base"], "vllm 1": ["toy_e8_bad_medical"]},
        "e16": {"transformers": ["toy_e16_base"]},
    }
    said = capsys.readouterr().err
    assert "base e8 and what was trained on it" in said and "e16" not in said


def test_a_killed_attempt_is_unfinished_and_the_next_one_goes_on(checkout):
    work = f"from pipeline.common.ledger import record; import time; record({STAGE!r}, lambda: time.sleep(60))"
    process = subprocess.Popen([sys.executable, "-c", work], env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    file = checkout / ".cache" / "ledger" / f"{STAGE}.jsonl"
    until(lambda: file.exists() and file.read_text().endswith("\n"), "a line", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert described()["stages"][STAGE]["outcome"] == "unfinished"
    record(STAGE, lambda: 0)
    stage = described()["stages"][STAGE]
    assert (stage["outcome"], stage["attempts"], stage["unfinished"]) == ("done", 2, 1)


def test_the_same_records_give_the_same_bytes(checkout):
    record(STAGE, lambda: 0)
    path = provenance.write(load_params(), "toy")
    first = path.read_bytes()
    assert provenance.write(load_params(), "toy").read_bytes() == first


def test_a_preregistration_is_hashed_as_it_is_and_as_it_was_when_stages_began(checkout, capsys):
    document = checkout / "docs" / "preregistration.md"
    document.parent.mkdir()
    document.write_text("fixed\n")
    record("sample@sp_olmoe_base", lambda: 0)
    first = described("sparsity")["preregistration"]
    assert first["file"] == "docs/preregistration.md" and first["sha256_when_stages_began"] == [first["sha256"]]
    document.write_text("changed after a run\n")
    now = described("sparsity")["preregistration"]
    assert now["sha256_when_stages_began"] == [first["sha256"]] != [now["sha256"]]
    assert described("toy")["preregistration"] is None
    document.unlink()
    with pytest.raises(UserError, match=r"docs/preregistration\.md as a preregistration, which is not there"):
        described("sparsity")
    assert main(["reproduce", "--study", "sparsity"]) == 2
    assert "docs/preregistration.md as a preregistration, which is not there" in capsys.readouterr().err


def test_a_stage_that_began_before_the_preregistration_was_written_is_not_passed_over(checkout):
    document = checkout / "docs" / "preregistration.md"
    document.parent.mkdir()
    record("pin@mixtral", lambda: 0)  # the moe study's too: it may have been fetched for that one
    document.write_text("written after a look\n")
    assert described("sparsity")["preregistration"]["sha256_when_stages_began"] == []
    document.unlink()
    with pytest.raises(ValueError, match="broken"):
        record("sample@sp_olmoe_base", fail)
    document.write_text("written after a look\n")
    record("sample@sp_olmoe_base", lambda: 0)
    # A line from before documents were recorded.
    old = {"attempt": "1", "started": "then", "code": {}, "machine": {}}
    (checkout / ".cache" / "ledger" / "train@sp_olmoe_bma.jsonl").write_text(json.dumps(old) + "\n")
    found = described("sparsity")["preregistration"]
    assert set(found["sha256_when_stages_began"]) == {found["sha256"], "not there", "not recorded"}


def test_code_says_the_commit_and_what_differs_from_it(checkout):
    clean = code()
    assert len(clean["commit"]) == 40 and clean["changed"] == [] and clean["diff_sha256"] is None
    (checkout / "dvc.lock").write_text("stages: {a: b}\n")
    assert code() == clean, "dvc.lock is a result"
    with (checkout / "params.yaml").open("a") as stream:
        stream.write("# changed\n")
    (checkout / "pipeline").mkdir()
    (checkout / "pipeline" / "new.py").touch()
    dirty = code()
    assert dirty["changed"] == ["params.yaml", "pipeline/"] and len(dirty["diff_sha256"]) == 64


def test_each_code_and_machine_is_written_once_and_stages_point_at_theirs(checkout):
    record(STAGE, lambda: 0)
    (checkout / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text() + "\n# changed\n")
    for stage in ("sample@toy_e8_bad_medical", "judge@toy_e8_bad_medical"):
        record(stage, lambda: 0)
    found = described()
    assert len(found["code"]) == 2 and len(found["machines"]) == 1
    assert {name.partition("@")[0]: it["code"] for name, it in found["stages"].items()} == {
        "train": 0,
        "sample": 1,
        "judge": 1,
    }
    assert found["machines"][0]["libraries"]["torch"].startswith("2.13.0")


def test_no_git_and_no_gpu_are_no_trouble(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = code()
    assert (found["commit"], found["changed"]) == (None, None)


def test_judges_are_named_as_they_named_themselves_with_what_they_cost(checkout):
    replies = [
        ("a", Reply("90", "stop", None, "deepseek-v3-0324", "fp_1", 700, 2, 0.25, 0.1)),
        ("b", Reply("80", "stop", None, "deepseek-v3-0324", "fp_1", 700, 2, 0.25, 0.1)),
        ("c", Reply("80", "stop", None, "deepseek-v3.1", None, 100, 2, 0.5, 0.1)),
    ]
    with ReplyCache(checkout / ".cache" / "verdicts.sqlite") as cache:
        for key, reply in replies:
            cache.put("deepseek_v3", key, reply)
        cache.put("gpt_4o", "d", replies[0][1])
    found = described("moe")
    assert [(it["model"], it["replies"], it["usd"]) for it in found["judges"]["deepseek_v3"]] == [
        ("deepseek-v3-0324", 2, 0.5),
        ("deepseek-v3.1", 1, 0.5),
    ]
    assert found["judging_usd"] == 1.0 and set(found["judges"]) == {"deepseek_v3"}


def test_hub_bases_are_named_by_their_commit(checkout):
    pin = {"repository": "a/b", "revision": "c" * 40, "files": {"model.safetensors": "d" * 64}}
    write_json(Path("artifacts/bases/mixtral/base.json"), pin)
    base = described("moe")["bases"]["mixtral"]
    assert (base["repository"], base["revision"], base["files"]) == ("a/b", "c" * 40, 1)


def test_secrets_do_not_reach_it_and_image_labels_do(checkout, monkeypatch):
    for name in ("TOGETHER_API_KEY", "HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "marker-secret")
    monkeypatch.setenv("EMOE_IMAGE_REVISION", "abc123")
    record(STAGE, lambda: 0)
    text = json.dumps(described()) + (checkout / ".cache" / "ledger" / f"{STAGE}.jsonl").read_text()
    assert "marker-secret" not in text
    assert described()["code"][0]["image"] == {"EMOE_IMAGE_REVISION": "abc123"}


def test_a_ledger_that_cannot_be_written_stops_nothing(checkout, capsys):
    (checkout / ".cache").write_text("a file where a folder should be")
    assert record(STAGE, lambda: 0) == 0
    assert f"provenance of {STAGE} is not recorded" in capsys.readouterr().err


def test_a_stage_with_an_impossible_name_leaves_no_file(checkout):
    assert record("train@../../x", lambda: 3) == 3
    assert not (checkout / ".cache").exists()


def test_a_stage_from_the_command_line_is_recorded(checkout):
    command = [sys.executable, "-m", "pipeline", "judge", "--run", "toy_e8_base"]
    result = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2
    assert described()["stages"]["judge@toy_e8_base"]["outcome"] == "failed"
