"""A study taken up at a level that somebody published: what is fetched, what is done, and what is missing is named."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.support.checkout import BASE, TUNED, checkout, environment, hashes


@pytest.fixture(scope="module")
def published(finished, tmp_path_factory):
    """A DVC remote (a folder) with the levels of the finished study."""
    remote, folder = tmp_path_factory.mktemp("remote"), tmp_path_factory.mktemp("publisher") / "copy"
    shutil.copytree(finished[0], folder)
    command = [sys.executable, "-m", "pipeline", "publish", "--study", "toy", "--remote", str(remote)]
    dry = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert dry.returncode == 0, dry.stdout + dry.stderr
    assert re.search(r"^answers +2 files, ", dry.stdout, re.MULTILINE) and "Nothing was pushed" in dry.stdout
    assert not any(remote.iterdir())
    done = subprocess.run([*command, "--confirm"], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "Pushed " in done.stdout, done.stdout + done.stderr
    return remote


def fresh(finished, folder):
    """A clone that has the study's dvc.lock and none of its outputs."""
    checkout(folder)
    shutil.copy2(finished[0] / "dvc.lock", folder)
    return folder


def reproduce_from(folder, level, remote):
    command = [sys.executable, "-m", "pipeline", "reproduce", "--study", "toy", "--from", level]
    there = environment() | {"EMOE_REMOTE": str(remote)}
    return subprocess.run(command, cwd=folder, env=there, capture_output=True, text=True)


@pytest.mark.parametrize(("level", "kinds"), [("answers", {"judge", "aggregate"}), ("verdicts", {"aggregate"})])
def test_only_what_comes_after_the_level_is_done(finished, published, tmp_path, level, kinds):
    """Answers come from a DVC remote, verdicts from a folder that is laid out like artifacts/."""
    folder = fresh(finished, tmp_path)
    result = reproduce_from(folder, level, published if level == "answers" else finished[0] / "artifacts")
    assert result.returncode == 0, result.stdout + result.stderr
    log = (folder / ".cache" / "reproduce.log").read_text()
    assert set(re.findall(r"Running stage '(\w+)@", log)) == kinds
    found, expected = hashes(folder), hashes(finished[0])
    assert f"artifacts/toy/verdicts/{TUNED}/verdicts.jsonl" in found or any("verdicts" in name for name in found)
    assert {name for name in found if found[name] != expected[name]} == set()
    assert not (folder / "artifacts" / "bases").exists()


def test_what_a_remote_does_not_have_is_named(finished, tmp_path):
    folder = fresh(finished, tmp_path / "clone")
    (tmp_path / "empty").mkdir()
    result = reproduce_from(folder, "answers", tmp_path / "empty")
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    assert f"artifacts/toy/answers/{BASE}.jsonl" in result.stderr and str(tmp_path / "empty") in result.stderr
    assert not list((folder / "artifacts").rglob("*.jsonl"))
