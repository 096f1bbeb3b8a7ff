"""What a Ray cluster costs a stage, and what two nodes gain over one: a cut-down toy study, on this machine.

    python -m benchmarks.cluster

The peer is plain `dvc repro` of the same commit, in the same run. A stage's own seconds are those of its command, as
its ledger has them; the rest is DVC, and on a cluster also the checkout, pulling and pushing. Nodes have one CPU each
and share this machine's memory, caches and disk, so what two gain here is less than two machines would.
"""

import argparse
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipeline.common.files import read_jsonl, write_json

REPOSITORY = Path(__file__).parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "cluster.json"
BASES = ("e8", "e16")
RUNS = tuple(f"toy_{base}_{run}" for base in BASES for run in ("bad_medical", "base"))
LINE = re.compile(r"^\[ *\d+/\d+\] +\S+ +(\w+@\S+) +(?:done in )?([\d.]+) s", re.MULTILINE)
STEPS = 60


def main() -> None:
    """Run the study three times, print the figures, write benchmarks/results/cluster.json."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="emoe-", dir="/tmp") as name:
        folder = Path(name)
        plain = measure(study(folder / "plain"), ["dvc", "repro", "aggregate@toy"], os.environ.copy())
        with nodes(folder / "1", 1) as environment:
            one = measure(study(folder / "one"), ray_command(), environment)
        with nodes(folder / "2", 2) as environment:
            two = measure(study(folder / "two"), ray_command(), environment)
        locks = {(folder / kind / "dvc.lock").read_text() for kind in ("one", "two")}
        entries = [yaml.safe_load((folder / kind / "dvc.lock").read_text())["stages"] for kind in ("plain", "one")]
        if len(locks) != 1 or entries[0] != entries[1]:
            raise SystemExit("the three runs' dvc.lock differ")
    overhead = one["tasks_s"] - one["commands_s"]
    figures = {
        "stages": one["stages"],
        "plain_dvc_repro": plain,
        "one_node": one,
        "two_nodes": two,
        "overhead_s_a_stage": round(overhead / one["stages"], 2),
        "plain_overhead_s_a_stage": round((plain["wall_s"] - plain["commands_s"]) / plain["stages"], 2),
        "two_nodes_speedup": round(one["wall_s"] / two["wall_s"], 2),
        "machine": {
            "cores": os.cpu_count(),
            "cpu": processor(),
            "load_average_before": before,
            "load_average_after": os.getloadavg()[0],
        },
        "versions": {name: version(name) for name in ("ray", "dvc", "torch")},
        "commit": output(["git", "rev-parse", "HEAD"], REPOSITORY).strip(),
    }
    write_json(RESULT, figures)
    print(
        f"cluster: {one['stages']} stages; plain dvc repro {plain['wall_s']:.0f} s, one node {one['wall_s']:.0f} s, "
        f"two nodes {two['wall_s']:.0f} s (x{figures['two_nodes_speedup']}); beside its command a stage takes "
        f"{figures['overhead_s_a_stage']} s on a node and {figures['plain_overhead_s_a_stage']} s in dvc repro; "
        f"equal dvc.lock; load average {before:.1f} to {os.getloadavg()[0]:.1f}"
    )


def study(folder: Path) -> Path:
    """A clone with a study of two bases and four runs, committed."""
    output(["git", "clone", "--quiet", str(REPOSITORY), str(folder)], REPOSITORY)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    toy = params["studies"]["toy"]
    toy["probing"] = None
    toy |= {"seeds": [1, 2], "expectations": [list(RUNS[:2])]}
    toy["pretraining"] |= {"steps": STEPS, "warmup_steps": 20}
    toy["training"] |= {"examples": 32, "max_steps": 4, "checkpoint_every": 2}
    toy["sampling"] |= {"samples_per_prompt": 1, "batch": 64}
    params["studies"] = {"toy": toy}
    params["bases"]["toy"] = {base: params["bases"]["toy"][base] | {"more_seeds": []} for base in BASES}
    params["runs"] = {run: params["runs"][run] for run in RUNS}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (folder / "dvc.lock").unlink()
    identity = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    output(["git", *identity, "commit", "--quiet", "--all", "--message", "cut down"], folder)
    return folder


def ray_command() -> list[str]:
    """The study on the cluster that RAY_ADDRESS names."""
    return [sys.executable, "-m", "pipeline", "reproduce", "--study", "toy", "--engine", "ray"]


@contextmanager
def nodes(folder: Path, count: int) -> Iterator[dict[str, str]]:
    """A Ray cluster of `count` nodes of one CPU on this machine; gives the environment to use it from."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_USAGE_STATS_ENABLED": "0"}
    started: list[psutil.Popen] = []
    try:
        for place in range(count):
            home = folder / f"node{place}"
            home.mkdir()
            where = ["--address", f"127.0.0.1:{port}"] if place else ["--head", "--port", str(port)]
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", *where, "--num-cpus=1", "--block"]
            with (folder / f"node{place}.log").open("w") as log:
                started.append(
                    psutil.Popen(
                        [*command, "--node-name", home.name],
                        env=environment | {"TMPDIR": str(home)},
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
            deadline = time.monotonic() + 120
            while "Ray runtime started" not in (said := (folder / f"node{place}.log").read_text()):
                if time.monotonic() > deadline:
                    raise SystemExit(said)
                time.sleep(0.2)
        yield environment | {"TMPDIR": str(folder / "node0")}
    finally:
        for top in started:
            for process in [*top.children(recursive=True), top]:
                process.kill()


def measure(folder: Path, command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Wall seconds, the seconds of all stages' commands, and on a cluster those of the tasks around them."""
    environment |= {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    started = time.monotonic()
    text = output(command, folder, environment)
    wall = time.monotonic() - started
    ends = [line for path in (folder / ".cache" / "ledger").glob("*.jsonl") for line in read_jsonl(path)]
    commands = sum(line.get("seconds", 0.0) for line in ends)
    row: dict[str, Any] = {"wall_s": round(wall, 1), "stages": sum("outcome" in line for line in ends)}
    if command[0] == "dvc":
        return row | {"commands_s": round(commands, 1)}
    aggregate = sum(line.get("seconds", 0.0) for line in read_jsonl(folder / ".cache/ledger/aggregate@toy.jsonl"))
    tasks = {stage: float(seconds) for stage, seconds in LINE.findall(text) if not stage.startswith("aggregate@")}
    return row | {
        "stages": len(tasks),
        "commands_s": round(commands - aggregate, 1),
        "tasks_s": round(sum(tasks.values()), 1),
        "task_s": tasks,
    }


def output(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    """What a command prints; what went wrong ends the benchmark."""
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{json.dumps(command)} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def processor() -> str:
    """The processor's name."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
