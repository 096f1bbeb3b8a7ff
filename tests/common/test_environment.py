"""What a stage is given of the environment, and what is removed and named."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.common.environment import STAGE, scrub, started_by
from pipeline.common.git import git
from pipeline.common.ledger import add, code, read_attempts, record
from pipeline.common.processes import mark, started

REPOSITORY = Path(__file__).parents[2]
LEFT_OVER = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "1",
    "GIT_DIR": "/elsewhere/.git",
    "OPENAI_ORG_ID": "org-somebody",
    "OPENAI_PROJECT_ID": "proj-somebody",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "OMP_SCHEDULE": "dynamic",
    "CUBLAS_LOGINFO_DBG": "1",
    "LD_PRELOAD": "",
}


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """A folder with params.yaml, and this process in it with variables of its own."""
    (tmp_path / "params.yaml").write_text("judges: {a: {api_key_env: A_SECRET}, b: {api_key_env: null}}\n")
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        monkeypatch.setenv(name, os.environ[name])  # what is removed comes back
    for name, value in LEFT_OVER.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_what_is_left_over_is_removed_and_named_and_what_is_needed_stays(environment):
    needed = {"HTTPS_PROXY": "http://p:1", "no_proxy": "*", "HF_TOKEN": "t", "LC_ALL": "C.UTF-8"}
    needed["A_SECRET"] = "key"  # pragma: allowlist secret
    for name, value in needed.items():
        environment.setenv(name, value)
    removed = scrub()
    assert set(LEFT_OVER) <= set(removed) and removed == sorted(removed)
    assert not LEFT_OVER.keys() & os.environ.keys()
    assert {name: os.environ.get(name) for name in needed} == needed
    assert "PATH" in os.environ and "null" not in removed


def test_a_stage_says_in_its_ledger_what_it_was_not_given(tmp_path):
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    command = [sys.executable, "-m", "pipeline", "judge", "--run", "toy_e8_base"]
    clean = {name: value for name, value in os.environ.items() if name not in LEFT_OVER}
    environment = clean | LEFT_OVER | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    text = (tmp_path / ".cache" / "ledger" / "judge@toy_e8_base.jsonl").read_text()
    for name, value in LEFT_OVER.items():
        assert f'"{name}"' in text and (len(value) < 5 or value not in text)


def test_a_left_over_rank_is_no_part_of_a_stage(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    parent = psutil.Process(os.getppid())
    monkeypatch.setenv(STAGE, f"train@a {mark()}")
    assert started_by("train@a") is None, "this process itself"
    monkeypatch.setenv(STAGE, f"train@a {parent.pid} {started(parent)}")
    assert started_by("train@a") == parent.pid and started_by("train@b") is None
    # Number 1 is among every process's ancestors, and of the last container too.
    for left_over in ("999999999 1.00", f"{parent.pid} 1.00", "1 1.00", "1", ""):
        monkeypatch.setenv(STAGE, f"train@a {left_over}")
        assert started_by("train@a") is None


def test_git_dir_of_another_repository_is_not_asked(tmp_path, monkeypatch):
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
        subprocess.run(["git", "init", "-q", name], cwd=tmp_path, check=True)
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *who, "commit", "-q", "--allow-empty", "-m", name], cwd=tmp_path / name, check=True)
    monkeypatch.chdir(tmp_path / "mine")
    mine = code()["commit"]
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert code()["commit"] == mine
    assert git("log", "-1", "--format=%s").stdout == "mine\n"


def test_a_ledger_line_that_a_full_disk_cut_short_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ledger = tmp_path / ".cache" / "ledger" / "judge@a.jsonl"
    record("judge@a", lambda: 0)
    cut = '{"attempt": "cut", "star\u00e9'.encode()[:-1]
    with ledger.open("ab") as stream:
        stream.write(cut)
    assert len(read_attempts("judge@a")) == 1
    record("judge@a", lambda: 0)
    assert [attempt["outcome"] for attempt in read_attempts("judge@a")] == ["done", "done"]
    with ledger.open("ab") as stream:
        stream.write(cut)
    elsewhere = '{"attempt": "elsewhere", "started": "then"}\n'
    for _ in range(2):  # what is here is not added again
        add("judge@a", elsewhere)
        assert ledger.read_bytes().endswith(cut + b"\n" + elsewhere.encode())
    assert [attempt.get("outcome") for attempt in read_attempts("judge@a")] == ["done", "done", None]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_gets_marks_for_what_it_cannot_show(tmp_path, encoding):
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    command = [sys.executable, "-m", "pipeline", "train", "--run", "\u30c6\u00e9"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 2 and b"no run '\\u30c6" in done.stderr and b"Traceback" not in done.stderr


def test_a_stage_can_ask_nothing(tmp_path):
    script = (
        "import sys; from pipeline.common.environment import prepare_stage; prepare_stage('train@a'); "
        "print(repr(sys.stdin.read()))"
    )
    there = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=there, input="y\n", capture_output=True, text=True
    )
    assert done.stdout == "''\n", done.stderr


def test_what_is_started_after_a_stage_is_no_part_of_it(tmp_path):
    """A process may do a stage and go on: the same stage, started by it later, is one of its own and is recorded."""
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    script = (
        "import subprocess, sys; from pipeline.__main__ import main; stage = ['judge', '--run', 'toy_e8_base']; "
        "main(stage); subprocess.run([sys.executable, '-m', 'pipeline', *stage])"
    )
    there = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=there, capture_output=True)
    lines = (tmp_path / ".cache" / "ledger" / "judge@toy_e8_base.jsonl").read_text().splitlines()
    assert len(lines) == 4, "two attempts, each with a beginning and an end"


def test_a_user_whom_the_system_does_not_know_has_a_name_and_a_home(monkeypatch, tmp_path):
    import getpass

    from pipeline.__main__ import _give_an_account

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "HOME"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    _give_an_account()
    assert getpass.getuser() == "uid-4242" and Path.home() == tmp_path / ".cache" / "home"
