"""Every child ends with its parent; a process number that another process has by now stops nothing."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.checkout import REPOSITORY, checkout, environment
from tests.support.processes import LIMIT_S, commands_below, ended, until
from tests.support.quick_yaml import safe_dump

KILL_DVC = """
import os, psutil
for parent in psutil.Process().parents():
    if "pipeline.running.worker" in parent.cmdline():
        os.kill(parent.pid, 9)
        break
"""
REPRO = """
import subprocess, sys
others = [subprocess.Popen(["sleep", "60"]) for _ in range(int(sys.argv[1]))]
from pipeline.running.dvc import repro
from pipeline.running.progress import Progress
failure = repro(["first"], Progress(["first"]))
print(failure)
for other in others: other.kill()
sys.exit(bool(failure))
"""


def test_a_killed_reproduce_takes_every_stage_with_it(tmp_path):
    folder = checkout(tmp_path)
    command = [sys.executable, "-m", "pipeline", "reproduce", "--study", "toy"]
    with subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.DEVNULL) as process:
        top = psutil.Process(process.pid)
        until(lambda: any("pretrain" in words for words in commands_below(top)), "pretraining", process)
        children = top.children(recursive=True)
        process.kill()
    assert ended(children)


STAGE = """
import sys, time
from pathlib import Path
from pipeline.common.processes import end_with_parent
from pipeline.common.signals import end_gently
end_with_parent()
end_gently(pass_on=False)
try:
    Path("started").touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)  # as long as replies in flight take
    Path("drained").touch()
    sys.exit(130)
"""
LOCAL = """
from types import SimpleNamespace
from pipeline.common.signals import end_gently
from pipeline.running import local
end_gently(pass_on=True)
local.share_out = lambda *_: {"base": []}
params = SimpleNamespace(study=lambda _: SimpleNamespace(world="toy"), stages_of=lambda _: ["first"])
params.stage_of_base = lambda _: "first"
local.reproduce(params, "study", 1)
"""


def test_sigterm_reaches_the_stage_and_waits_for_it(tmp_path):
    """`kill` of reproduce alone, unlike a terminal's Ctrl-C: DVC and the stage below it are told, and waited for.

    Debian's sh, which DVC takes where SHELL is not set, stays in between unless `cmd` says `exec`, and tells no one.
    """
    (tmp_path / "stage.py").write_text(STAGE)
    stage = {"cmd": f"exec {sys.executable} stage.py", "outs": ["drained"]}
    (tmp_path / "dvc.yaml").write_text(safe_dump({"stages": {"first": stage}}))
    there = environment() | {"PYTHONPATH": str(REPOSITORY), "SHELL": "/bin/sh"}
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, env=there, check=True)
    run = [sys.executable, "-c", LOCAL]
    with subprocess.Popen(run, cwd=tmp_path, env=there, stderr=subprocess.PIPE, text=True) as process:
        until((tmp_path / "started").exists, "the stage", process)
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        words = process.communicate(timeout=LIMIT_S)[1]
    assert "Waiting for stages to end" in words and "KeyboardInterrupt" in words
    assert (tmp_path / "drained").exists() and ended(children)


def test_a_stage_killed_dvc_leaves_ends(tmp_path):
    """DVC alone is killed: the stage that it started does not go on without it."""
    script = (
        "import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())]).wait()"
    )
    child = (
        "import sys, time; from pipeline.common.processes import end_with_parent; "
        "end_with_parent(int(sys.argv[1])); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, child], env=environment() | {"PYTHONPATH": str(REPOSITORY)}
    ) as parent:
        until(psutil.Process(parent.pid).children, "a child", parent)
        children = psutil.Process(parent.pid).children()
        parent.kill()
    assert ended(children)


def test_in_a_new_container_the_numbers_of_killed_processes_are_taken(tmp_path):
    unshare = ["unshare", "-pf", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a namespace of processes: a container is NOT tried")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "kill.py").write_text(KILL_DVC)
    stage = {"cmd": f"test -e b || {sys.executable} kill.py; echo a > a", "outs": ["a"]}
    (tmp_path / "dvc.yaml").write_text(safe_dump({"stages": {"first": stage}}))
    there = environment() | {"PYTHONPATH": str(REPOSITORY)}
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, env=there, check=True)
    run = [*unshare, sys.executable, "-c", REPRO]
    first = subprocess.run([*run, "0"], cwd=tmp_path, env=there, capture_output=True, text=True)
    assert first.returncode == 1, first.stdout + first.stderr
    assert '"pid"' in (tmp_path / ".dvc" / "tmp" / "rwlock").read_text(), "the kill left its mark"
    (tmp_path / "b").touch()
    again = subprocess.run([*run, "40"], cwd=tmp_path, env=there, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert Path(tmp_path / "a").read_text() == "a\n"
