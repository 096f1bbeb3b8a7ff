"""The toy study on a Ray cluster of two nodes on this machine, one of which is killed; and what each part refuses."""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from pipeline.common.errors import UserError
from pipeline.common.ledger import path_of
from pipeline.common.processes import lives
from pipeline.params.load import load_params
from pipeline.running.cluster.board import Board
from pipeline.running.cluster.head import check_address
from pipeline.running.cluster.plan import gpus, make_plan
from pipeline.running.cluster.stage import push
from pipeline.running.dvc import repository, use_remote
from tests.support.checkout import BASE, TUNED, checkout, environment, hashes, run
from tests.support.quick_yaml import safe_dump, safe_load

COMMAND = ("-m", "pipeline", "reproduce", "--study", "toy", "--engine", "ray")
RAY = (sys.executable, "-m", "ray.scripts.scripts")
STAGE = "pipeline.running.cluster.stage"
# A site-wide module of the nodes' Python: faults of machines, not of the commit, which is the same when the study is
# asked for again. One stage fails while a file is there, and training on one node says where it is and goes no further.
FAULT = """
import os, sys, time
if sys.orig_argv[-3:] == ["judge", "--run", "judge@" + {run!r}] and os.path.exists({marker!r}):
    print("error: the judge is out for lunch", flush=True)
    os._exit(2)
if sys.orig_argv[-3:-1] == ["train", "--run"] and os.environ["TMPDIR"] == {slow!r}:
    open({slow!r} + "/training", "w").close()
    while True:
        time.sleep(1)
"""
# What asks for the judges' resource runs where this runs, one at a time.
JUDGES = """
import itertools, time
import ray
from pipeline.running.cluster.head import JUDGING

def judge():
    started = time.monotonic()
    time.sleep(0.3)
    return ray.get_runtime_context().get_node_id(), started, time.monotonic()

ray.init(logging_level="ERROR")
task = ray.remote(num_cpus=0, resources=JUDGING)(judge)
times = sorted(ray.get([task.remote() for _ in range(3)]), key=lambda row: row[1])
assert {node for node, _, _ in times} == {ray.get_runtime_context().get_node_id()}, times
assert all(first[2] <= second[1] for first, second in itertools.pairwise(times)), times
"""


class Nodes:
    """Ray nodes with one CPU each, every one with a TMPDIR of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.processes: dict[str, psutil.Popen] = {}
        self.site = folder / "site"
        self.site.mkdir()
        # A node that is silent for five seconds counts as dead; Ray's own fifteen are for real networks.
        self.environment = environment() | {
            "PYTHONPATH": str(self.site),
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "10",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def start(self, name: str) -> None:
        where = ["--address", self.address]
        if not self.processes:
            where = ["--head", "--port", self.address.partition(":")[2], "--include-dashboard", "false"]
        (self.folder / name).mkdir()
        with (self.folder / f"{name}.log").open("w") as log:
            self.processes[name] = psutil.Popen(
                [
                    sys.executable,
                    "-m",
                    "ray.scripts.scripts",
                    "start",
                    *where,
                    "--num-cpus=1",
                    "--node-name",
                    name,
                    "--block",
                ],
                env=self.environment | {"TMPDIR": str(self.folder / name)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(lambda: "Ray runtime started" in (self.folder / f"{name}.log").read_text(), f"a node {name}")

    def driver(self) -> dict[str, str]:
        return self.environment | {"RAY_ADDRESS": self.address, "TMPDIR": str(self.folder / "alpha")}

    def kill(self, name: str) -> list[psutil.Process]:
        """SIGKILL for a node; the stages that run on it are left, and returned: they are to end by themselves."""
        top = self.processes[name]
        everything = [top, *top.children(recursive=True)]
        stages = [process for process in everything if STAGE in process.cmdline()]
        stages += [child for stage in stages for child in stage.children(recursive=True)]
        for process in everything:
            if process not in stages:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        return stages

    def stop(self) -> None:
        for top in self.processes.values():
            if top.poll() is None:
                for process in [top, *top.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()


@pytest.fixture
def nodes():
    pytest.importorskip("ray", reason="ray is not installed here (Linux only): the cluster is NOT tested")
    # The names of Ray's sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="emoe-", dir="/tmp"))
    cluster = Nodes(folder)
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(condition, what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} never happened"
        time.sleep(0.1)


def test_a_killed_node_and_a_failed_run_change_no_byte(nodes, finished, tmp_path):
    """One node dies in the middle of training, one run's judging fails: the rest goes on; asked again, it is whole."""
    expected = hashes(finished[0])
    folder = checkout(tmp_path)
    marker = nodes.folder / "lunch"
    marker.touch()
    beta = nodes.folder / "beta"
    (nodes.site / "sitecustomize.py").write_text(FAULT.format(run=BASE, marker=str(marker), slow=str(beta)))
    nodes.start("alpha")
    nodes.start("beta")
    judges = subprocess.run(
        [sys.executable, "-c", JUDGES], cwd=folder, env=nodes.driver(), capture_output=True, text=True
    )
    assert judges.returncode == 0, judges.stderr

    command, log = [sys.executable, *COMMAND], tmp_path / "log"
    with log.open("w") as stream:
        first = subprocess.Popen(command, cwd=folder, env=nodes.driver(), stdout=stream, stderr=stream)
    wait_for(lambda: "Ray: 2 nodes, 7 stages to do." in log.read_text(), "a cluster of two nodes")
    # Both runs are trained at once, one on each node.
    wait_for((beta / "training").exists, "training on beta")
    orphans = nodes.kill("beta")
    assert orphans
    wait_for(lambda: not any(lives(process) for process in orphans), "the end of what ran on beta", 60)
    assert first.wait(300) == 2, log.read_text()
    output = log.read_text()
    assert "Traceback" not in output
    assert "cut off on beta" in output
    assert f"judge@{BASE} failed on alpha:" in output and "    error: the judge is out for lunch" in output
    grid = (folder / ".cache" / "reproduce.grid").read_text()
    assert grid.splitlines()[0].split() == ["pretrain", "train", "sample", "judge"]
    assert {row.split()[0]: row.count("done") for row in grid.splitlines()[1:4]} == {"e8": 1, BASE: 2, TUNED: 3}
    assert "6 done, 1 failed" in grid

    marker.unlink()
    second = subprocess.run(command, cwd=folder, env=nodes.driver(), capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "1 stages to do" in second.stdout
    found = hashes(folder)
    assert {name for name in expected | found if found.get(name) != expected.get(name)} == set()
    stages = json.loads((folder / "artifacts" / "toy" / "provenance.json").read_text())["stages"]
    assert {stage["outcome"] for stage in stages.values()} == {"done"} and len(stages) == 9
    assert stages[f"judge@{BASE}"]["attempts"] == 1  # the fault struck before there was a stage


def test_the_plan_is_what_dvc_finds_out_of_date(tmp_path, monkeypatch):
    from dvc.repo import Repo

    monkeypatch.chdir(checkout(tmp_path))
    with Repo() as repo:
        plan = make_plan(repo, load_params(), "toy")
    inputs = {task.stage: set(task.inputs) for task in plan.tasks}
    assert plan.ready == ()
    assert inputs == {
        "pretrain@e8": set(),
        **{f"train@{name}": {"pretrain@e8"} for name in (BASE, TUNED)},
        **{f"sample@{name}": {"pretrain@e8", f"train@{name}"} for name in (BASE, TUNED)},
        **{f"judge@{name}": {f"sample@{name}"} for name in (BASE, TUNED)},
    }
    places = {task.stage: place for place, task in enumerate(plan.tasks)}
    assert all(places[name] < places[stage] for stage, names in inputs.items() for name in names)


def test_what_is_up_to_date_is_an_input_and_no_task(finished, tmp_path, monkeypatch):
    from dvc.repo import Repo

    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    monkeypatch.chdir(folder)
    params = safe_load((folder / "params.yaml").read_text())
    params["runs"][TUNED]["lora"]["rank"] = 4
    (folder / "params.yaml").write_text(safe_dump(params, sort_keys=False))
    with Repo() as repo:
        plan = make_plan(repo, load_params(), "toy")
    assert [task.stage for task in plan.tasks] == [f"{kind}@{TUNED}" for kind in ("train", "sample", "judge")]
    assert plan.ready == ("pretrain@e8",)


def test_gpus_are_those_that_the_parameters_name():
    params = load_params()
    assert gpus(params, "toy", "train@toy_e8_base") == 0
    assert gpus(params, "moe", "train@mixtral_base") == params.study("moe").training.devices
    sampling = params.study("moe").sampling
    assert gpus(params, "moe", "sample@mixtral_base") == sampling.tensor_parallel * sampling.data_parallel
    assert gpus(params, "moe", "judge@mixtral_base") == gpus(params, "moe", "pin@mixtral") == 0


def test_the_board_says_where_everything_is(tmp_path, capsys):
    board = Board(["pin@m", "train@a", "train@b", "judge@a", "judge@b"], tmp_path / "grid", live=False)
    board.run("pin@m", "one")
    board.end("pin@m", "done", "one", 61.0)
    board.run("pin@m", "one")  # news that is late
    board.run("train@a", "one")
    board.run("train@b", "two")
    board.lose({"id": "one"})
    board.end("train@a", "failed", "one")
    board.end("judge@a", "not run")
    board.show(last=True)
    rows = [line.split() for line in (tmp_path / "grid").read_text().splitlines()]
    assert rows == [
        ["pin", "train", "judge"],
        ["m", "done", "1:01"],
        ["a", "FAILED", "not", "run"],
        ["b", "waiting", "waiting"],
        ["0:00:", "2", "waiting,", "1", "done,", "1", "failed,", "1", "not", "run"],
    ]
    assert "cut off on two" in capsys.readouterr().out


def test_work_that_is_not_committed_is_refused(tmp_path):
    pytest.importorskip("ray")
    folder = checkout(tmp_path)
    with (folder / "params.yaml").open("a") as stream:
        stream.write("# changed\n")
    result = run(folder, sys.executable, *COMMAND)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.startswith("error: params.yaml differ") and "commit" in result.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"libraries": {"torch": "1.0"}}, "and not 1.0 as the head"),
        ({"settings": {"url": "/nowhere/shared"}}, "this node does not see the DVC remote /nowhere/shared"),
        ({"lock": {"pretrain@e8": None}}, "artifacts/bases/e8"),
    ],
)
def test_a_node_that_cannot_take_part_says_why(tmp_path, change, words):
    folder = checkout(tmp_path)
    (tmp_path / ".cache" / "remote").mkdir(parents=True)
    order = order_for(f"train@{BASE}", tmp_path / ".cache" / "remote") | change
    if order["lock"]:
        made = {"cmd": "python", "outs": [{"path": "artifacts/bases/e8", "hash": "md5", "md5": f"{0:032x}.dir"}]}
        order["lock"] = {"pretrain@e8": made}
    code, errors = obey(order, folder)
    assert code == 2 and "Traceback" not in errors
    assert words in errors.splitlines()[-1]


def test_a_stage_that_a_dead_node_had_pushed_is_restored_with_its_ledger(finished, tmp_path, monkeypatch):
    """Its node died before the head knew: the next one need not do the work again, and knows who did it."""
    first, remote, stage = tmp_path / "first", tmp_path / "remote", "pretrain@e8"
    shutil.copytree(finished[0], first)
    remote.mkdir()
    monkeypatch.chdir(first)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", "")  # which repository() sets
    use_remote("shared", {"url": str(remote)})
    with repository() as repo:
        push(repo, stage)

    second = checkout(tmp_path / "second")
    earlier = '{"attempt": "1", "started": "one that failed on this node"}\n'
    (second / path_of(stage)).parent.mkdir(parents=True)
    (second / path_of(stage)).write_text(earlier)
    code, errors = obey(order_for(stage, remote), second)
    assert code == 0, errors
    expected = {name: value for name, value in hashes(first).items() if name.startswith("artifacts/bases/")}
    assert expected and {name: hashes(second).get(name) for name in expected} == expected
    assert (second / path_of(stage)).read_text() == earlier + path_of(stage).read_text()


def order_for(stage: str, remote: Path) -> dict[str, object]:
    return {
        "stage": stage,
        "study": "toy",
        "remote": "shared",
        "settings": {"url": str(remote)},
        "libraries": {},
        "cache": "",
        "data": str(remote.parent / "data"),
        "lock": {},
    }


def obey(order: dict[str, object], folder: Path) -> tuple[int, str]:
    """Give a stage's process its order; its exit status and what it said on stderr."""
    command = [sys.executable, "-m", STAGE]
    # Standard input stays open: its end would stop the stage.
    with subprocess.Popen(
        command, cwd=folder, env=environment(), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stderr
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        errors = process.stderr.read()
    return process.returncode, errors


def test_an_address_where_nothing_listens_is_refused_at_once():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        with pytest.raises(UserError, match="no Ray cluster answers there"):
            check_address(f"127.0.0.1:{bound.getsockname()[1]}")


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_an_address_may_be_ipv6():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        check_address(f"[::1]:{server.getsockname()[1]}")


@pytest.mark.parametrize("address", ["", "auto", "local", "ray://head:10001", "::1"])
def test_addresses_that_are_no_host_and_port_are_left_to_ray(address):
    check_address(address)
