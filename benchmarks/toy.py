"""Where the time of the toy study goes: every stage timed, import time apart.

    python -m benchmarks.toy            # runs the whole study in a scratch clone, then a no-op and one variant

The peer is the same study with one `dvc repro` after another (`--jobs 1`), in the same run with --serial.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from pipeline.__main__ import OBJECTS_BETWEEN_COLLECTIONS
from pipeline.common.files import write_json

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "toy.json"
LINE = re.compile(r"^\[ *\d+/\d+\] +\S+ +(\w+)@(\S+) +([\d.]+) s", re.MULTILINE)
IMPORTS = {
    "pretrain": "from pipeline.models.determinism import without_compiler; without_compiler(); "
    "from transformers import AutoModelForCausalLM",
    "train": "from pipeline.models.determinism import without_compiler; without_compiler(); from trl import SFTTrainer",
    "sample": "from pipeline.models.determinism import without_compiler; without_compiler(); "
    "import peft; from transformers import AutoModelForCausalLM",
    "judge": "import openai, aiohttp",
    "aggregate": "import pandas, matplotlib.figure",
}


def main() -> None:
    """Run, print the table, write benchmarks/results/toy.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serial", action="store_true", help="also time the study with --jobs 1")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    start = f"import gc; gc.set_threshold({OBJECTS_BETWEEN_COLLECTIONS}); "
    figures: dict = {"imports_s": {name: timed([sys.executable, "-c", start + code]) for name, code in IMPORTS.items()}}
    with tempfile.TemporaryDirectory(prefix="emoe-bench-") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(clone)], check=True)
        committed = (clone / "dvc.lock").read_bytes()
        figures["study"] = study(clone)
        figures["hashes_as_committed"] = (clone / "dvc.lock").read_bytes() == committed
        figures["nothing_changed_s"] = timed(reproduce_command(), clone)
        variant = ["dvc", "exp", "run", "-S", "runs.toy_e8_bad_medical.lora.rank=2", "aggregate@toy"]
        figures["one_variant_s"] = timed(variant, clone)
    if arguments.serial:
        with tempfile.TemporaryDirectory(prefix="emoe-bench-") as folder:
            clone = Path(folder) / "clone"
            subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(clone)], check=True)
            figures["study_serial"] = study(clone, "--jobs", "1")
    figures["machine"] = {"cores": os.cpu_count(), "processor": processor(), "load_before": load}
    figures["versions"] = {name: version(name) for name in ("torch", "transformers", "peft", "trl", "dvc")}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    figures["commit"] = commit.stdout.strip()
    write_json(RESULTS, figures)
    for kind, row in figures["study"]["stages"].items():
        imports = figures["imports_s"][kind]
        print(f"{kind:<10} {row['count']:>3} stages {row['seconds']:>7.1f} s, imports about {imports:.1f} s each")
    print(
        f"toy study {figures['study']['wall_s']:.0f} s on {os.cpu_count()} cores, peak memory "
        f"{figures['study']['peak_gb']:.1f} GB; nothing changed {figures['nothing_changed_s']:.1f} s; "
        f"one variant {figures['one_variant_s']:.0f} s; every output's hash as in the committed dvc.lock: "
        f"{'yes' if figures['hashes_as_committed'] else 'no'}"
    )


def reproduce_command(*more: str) -> list[str]:
    """The study's command."""
    return [sys.executable, "-m", "pipeline", "reproduce", "--study", "toy", *more]


def study(clone: Path, *more: str) -> dict:
    """Wall time, seconds by kind of stage, and the process tree's peak resident memory."""
    started, peak = time.monotonic(), 0.0
    with (clone.parent / "log").open("w+") as log:
        process = subprocess.Popen(reproduce_command(*more), cwd=clone, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, tree_gb(process.pid))
            time.sleep(0.5)
        wall = time.monotonic() - started
        log.seek(0)
        output = log.read()
    if process.returncode:
        raise SystemExit(output)
    stages: dict = {}
    for kind, _, seconds in LINE.findall(output):
        row = stages.setdefault(kind, {"count": 0, "seconds": 0.0})
        row["count"] += 1
        row["seconds"] = round(row["seconds"] + float(seconds), 1)
    return {"wall_s": wall, "peak_gb": peak, "stages": stages}


def tree_gb(root: int) -> float:
    """Resident memory of a process and all its descendants."""
    parents, sizes = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            sizes[int(entry.name)] = int((entry / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue  # it has just ended
    members, grew = {root}, True
    while grew:
        new = {pid for pid, parent in parents.items() if parent in members} - members
        members, grew = members | new, bool(new)
    return sum(sizes.get(pid, 0) for pid in members) / 1e9


def timed(command: list[str], folder: Path | None = None) -> float:
    """Seconds a command takes; its output is shown only if it fails."""
    started = time.monotonic()
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{json.dumps(command)} failed:\n{result.stdout}{result.stderr}")
    return round(time.monotonic() - started, 2)


def processor() -> str:
    """The processor's name."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
