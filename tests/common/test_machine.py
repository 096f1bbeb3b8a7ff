"""One function for memory, one for GPUs: control groups, and what CUDA_VISIBLE_DEVICES hides."""

import pytest

from pipeline.common import machine
from pipeline.common.machine import free_memory_bytes, gpus, memory_bytes

GIB = 2**30


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A function that puts this process into control groups: the lines of /proc/self/cgroup and the groups' files."""

    def put(lines: str, files: dict[str, object]) -> None:
        (tmp_path / "cgroup").write_text(lines)
        for name, content in files.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")

    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_GROUP_ROOT", tmp_path / "fs")
    return put


def test_a_limit_around_a_nested_group_of_version_2_counts(groups):
    groups(
        "0::/job/step\n",
        {
            "job/memory.max": GIB,
            "job/memory.current": GIB // 2,
            "job/memory.stat": f"anon 5\ninactive_file {GIB // 4}",
            "job/step/memory.max": "max",
            "job/step/memory.current": 0,
            "job/step/memory.stat": "anon 0",
        },
    )
    assert memory_bytes() == GIB
    assert free_memory_bytes() == GIB - GIB // 4


def test_a_container_sees_its_limit_at_the_root(groups):
    groups("0::/docker/abc\n", {"memory.max": GIB, "memory.current": 0, "memory.stat": ""})
    assert memory_bytes() == free_memory_bytes() == GIB


def test_a_limit_of_version_1_counts(groups):
    root = "memory/docker"
    files = {"memory.limit_in_bytes": GIB, "memory.usage_in_bytes": 0, "memory.stat": "total_inactive_file 0"}
    groups("4:cpu,cpuacct:/\n3:memory:/docker\n", {f"{root}/{name}": value for name, value in files.items()})
    assert memory_bytes() == GIB


def test_no_limit_is_the_machines_memory(groups):
    groups("0::/\n", {"memory.max": "max", "memory.current": 0, "memory.stat": ""})
    assert memory_bytes() > GIB // 4 and 0 < free_memory_bytes() <= memory_bytes()


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    """A machine with an old card and an Ampere one, as nvidia-smi has them."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\ncase $1 in *uuid*) printf 'GPU-aaaa\\nGPU-bbbb\\n' ;;\n"
        "*) printf 'Tesla V100, 7.0, 16384, 580.1\\nA100, 8.0, 40960, 580.1\\n' ;; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["Tesla V100", "A100"]),
        ("", []),
        ("-1", []),
        ("0", ["Tesla V100"]),
        ("1,0", ["A100", "Tesla V100"]),
        ("1,-1,0", ["A100"]),
        ("7", []),
        ("GPU-bbbb", ["A100"]),
        ("GPU-b", ["A100"]),
        ("GPU-cccc", []),
    ],
)
def test_cards_that_cuda_will_not_see_are_not_there(two_gpus, visible, names):
    if visible is not None:
        two_gpus.setenv("CUDA_VISIBLE_DEVICES", visible)
    seen = gpus()
    assert [gpu.name for gpu in seen.found] == names
    assert names or "CUDA_VISIBLE_DEVICES" in seen.trouble
