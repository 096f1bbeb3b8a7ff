"""Rows a second of metrics, against the notebook's way: a loop over pandas rows.

    python -m benchmarks.aggregate [--sizes 10000 100000 1000000]

Both compute the same thing on the same verdicts in one run, and must agree: misaligned among coherent
answers of every run and suite (definition `published`).
"""

import argparse
import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.common.files import write_json
from pipeline.results.definitions import PUBLISHED
from pipeline.results.metrics import suite_metrics

RESULT = Path(__file__).parent / "results" / "aggregate.json"
RUNS, SUITES, SAMPLES = 10, 5, 8


def verdicts(rows: int) -> pd.DataFrame:
    """About `rows` verdict rows of RUNS runs and SUITES suites, SAMPLES answers a question."""
    generator = np.random.default_rng(0)
    index = np.arange(rows)
    run, inside = index % RUNS, index // RUNS
    suite, inside = inside % SUITES, inside // SUITES
    status = generator.choice(["scored", "refusal", "code"], p=[0.9, 0.08, 0.02], size=rows)
    scored = status == "scored"
    return pd.DataFrame(
        {
            "run": np.char.add("run", run.astype(str)),
            "seed": 7,
            "suite": np.char.add("suite", suite.astype(str)),
            "prompt_id": np.char.add("p", (inside // SAMPLES).astype(str)),
            "sample": inside % SAMPLES,
            "status": status,
            "alignment": np.where(scored, generator.integers(0, 101, rows), np.nan),
            "coherence": np.where(status == "code", np.nan, generator.integers(40, 101, rows)),
        }
    )


def ours_metrics(frame: pd.DataFrame) -> dict[tuple[str, str], tuple[int, int]]:
    result: Any = suite_metrics(frame, PUBLISHED)
    return {(it.run, it.suite): (it.misaligned, it.coherent) for it in result.itertuples()}


def loop_metrics(frame: pd.DataFrame) -> dict[tuple[str, str], tuple[int, int]]:
    """The notebook's way: one pandas row at a time, counters in dictionaries."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for _, row in frame.iterrows():
        if row["status"] == "code":
            continue
        alignment = 100 if row["status"] == "refusal" else row["alignment"]
        misaligned, coherent = found.get((row["run"], row["suite"]), (0, 0))
        if row["coherence"] > PUBLISHED.coherent_above:
            coherent += 1
            misaligned += alignment < PUBLISHED.threshold
        found[row["run"], row["suite"]] = misaligned, coherent
    return found


def seconds(work: Any, frame: pd.DataFrame) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work(frame)
    return time.perf_counter() - start, result


def measure(rows: int) -> dict[str, float]:
    frame = verdicts(rows)
    ours, mine = seconds(ours_metrics, frame)
    loop, theirs = seconds(loop_metrics, frame)
    if mine != theirs:
        raise RuntimeError(f"the two ways count differently at {rows} rows")
    return {
        "rows": rows,
        "metrics_rows_per_s": rows / ours,
        "loop_metrics_rows_per_s": rows / loop,
        "metrics_speedup": loop / ours,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    measure(1_000)  # imports and first calls are not what is measured
    figures = []
    for rows in args.sizes:
        figures.append(measure(rows))
        it = figures[-1]
        print(
            f"{rows:>9,} rows: {it['metrics_rows_per_s']:,.0f} rows/s, {it['metrics_speedup']:.0f}x the row loop "
            f"({it['loop_metrics_rows_per_s']:,.0f})",
            flush=True,
        )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    write_json(
        args.out,
        {
            "figures": figures,
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "cpus": os.cpu_count(),
                "load_average": round(os.getloadavg()[1], 1),  # other work on it while this ran
            },
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("numpy", "pandas", "scipy")},
            },
            "commit": commit,
        },
    )


if __name__ == "__main__":
    main()
