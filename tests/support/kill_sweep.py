"""Kill a stage at every file operation that it does, run it again, and compare hashes.

    python -m tests.support.kill_sweep [STAGE[:OPERATION.N] ...] [--every N]      (all six stages: an hour of a core)

A file operation is a rename, replace, unlink, rmdir, mkdir, fsync or link of the stage's process, or the storing of a
judge's reply (of every eighth). The stage is killed (SIGKILL) before its first, then before its second, and so on; what
is killed after the last one is done. Each time its outputs are removed, as DVC does before it runs a stage again, the
stage is run again, and everything below artifacts/ and paper_figures/ must have the hashes of an undisturbed run. The
judge, on loopback, is asked nothing twice but what it was answering. Processes are forked from one that has imported
torch.
"""

import argparse
import itertools
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.api.local_server import serve
from pipeline.api.replies import ReplyCache
from pipeline.common.numerics import pin_kernels
from tests.support.checkout import BASE, TUNED, checkout, hashes
from tests.support.counted_judge import ASKED, asked_again
from tests.support.quick_yaml import safe_dump, safe_load

OPERATIONS = ("rename", "replace", "unlink", "remove", "rmdir", "mkdir", "fsync", "link", "symlink")
# In the order in which they are done: the command, and the outputs that dvc.yaml names.
STAGES: dict[str, tuple[list[str], list[str]]] = {
    "pretrain": (["pretrain", "--base", "e8"], ["artifacts/bases/e8"]),
    "train": (["train", "--run", TUNED], [f"artifacts/toy/adapters/{TUNED}"]),
    "sample": (["sample", "--run", TUNED], [f"artifacts/toy/answers/{TUNED}.jsonl"]),
    "judge": (["judge", "--run", TUNED], [f"artifacts/toy/verdicts/{TUNED}"]),
    "probe": (["probe", "--study", "toy"], ["artifacts/toy/probes"]),
    "aggregate": (
        ["aggregate", "--study", "toy"],
        ["paper_figures/toy", "artifacts/toy/metrics.json", "artifacts/toy/misaligned.csv"],
    ),
}
# What the aggregate reads beside.
OTHER_RUN = [[kind, "--run", BASE] for kind in ("train", "sample", "judge")]


REPLIES = 8
PROBING = {
    "runs": [TUNED], "in_domain": ["medical"], "benign": ["finance"], "questions": 4, "groups": 2, "blocks": 1,
    "search": {"steps": 2, "width": 1}, "scales": [0.5], "depth": 0.0, "strengths": [1.0], "random": 1,
    "permutations": 10,
}  # fmt: skip


def small_study(folder: Path, judge_url: str) -> Path:
    """A checkout whose stages take about a second each, and still do everything that stages do."""
    checkout(folder)
    shutil.rmtree(folder / ".git")
    path = folder / "params.yaml"
    params = safe_load(path.read_text())
    toy = params["studies"]["toy"]
    toy |= {"seeds": [1], "suites": ["medical", "cooking", "finance", "harm"], "held_out": ["cooking"]}
    toy["probing"] = PROBING
    # One request at a time: a kill takes one reply at most that was paid for and not stored.
    judge = {"base_url": judge_url, "model": "counted", "concurrency": 1, "timeout_s": 300.0}
    toy["judges"] = {"toy_rule": toy["judges"]["toy_rule"] | judge}
    toy["pretraining"] |= {"steps": 20, "warmup_steps": 2}
    params["runs"][TUNED]["trajectory"]["every"] = 2
    params["runs"][TUNED]["lora"]["experts"] = [0, 1]
    path.write_text(safe_dump(params, sort_keys=False))
    return folder


def arm(kill_before: int, count: Path | None) -> None:
    """Have this process killed before its `kill_before`-th file operation (0: never); `count` gets their names."""
    done, home = 0, os.getpid()

    def wrap(name: str, operation: Callable[..., object], every: int = 1) -> Callable[..., object]:
        calls = itertools.count(1)

        def counted(*arguments: object, **options: object) -> object:
            nonlocal done
            if os.getpid() == home and next(calls) % every == 0:
                done += 1
                if done == kill_before:
                    os.kill(home, signal.SIGKILL)
                if count:
                    with count.open("a") as stream:
                        stream.write(f"{name}\n")
            return operation(*arguments, **options)

        return counted

    for name in OPERATIONS:
        setattr(os, name, wrap(name, getattr(os, name)))
    ReplyCache.put = wrap("reply", ReplyCache.put, REPLIES)  # type: ignore[method-assign]


def run(folder: Path, command: list[str], kill_before: int = 0, count: Path | None = None) -> int:
    """Run a stage in `folder` in a forked process; its exit status, -9 where it was killed."""
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        log = os.open("stage.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = 1
        try:
            from pipeline.__main__ import main

            arm(kill_before, count)
            status = main(command)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def import_what_stages_import() -> None:
    """Import it once, for all the processes that are forked from this one."""
    pin_kernels()
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    import matplotlib.pyplot  # noqa: F401
    import openai  # noqa: F401
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import transformers  # noqa: F401
    import trl  # noqa: F401


def sweep(tried: list[str], scratch: Path, every: int) -> Iterator[tuple[str, int, str]]:
    """Yield (stage, kill point, what was wrong or "") for every `every`-th point of the stages, or for those named."""
    import_what_stages_import()
    os.environ[ASKED] = str(scratch / "asked")
    with serve("tests.support.counted_judge:reply") as judge_url:
        state = small_study(scratch / "state", judge_url)
        for stage in STAGES:
            points = [point for name, _, point in (it.partition(":") for it in tried) if name == stage]
            yield from _sweep(stage, scratch, state, every, points)


def _sweep(stage: str, scratch: Path, state: Path, every: int, points: list[str]) -> Iterator[tuple[str, int, str]]:
    """One stage's points, as `fsync.3` ("": every `every`-th); it is done once in any case, for later ones."""
    command, outputs = STAGES[stage]
    for other in OTHER_RUN if stage == "aggregate" else []:
        assert run(state, other) == 0, (state / "stage.log").read_text()
    before = shutil.copytree(state, scratch / "before")
    names = scratch / "operations"
    assert run(state, command, count=names) == 0, (state / "stage.log").read_text()
    expected, operations = hashes(state), names.read_text().split()
    names.unlink()
    if points:
        print(f"{stage}: {len(operations)} file operations, {dict(Counter(operations))}", flush=True)
        chosen = [place(operations, point) for point in points] if all(points) else range(1, len(operations) + 1, every)
        for point in chosen:
            again = int(operations[point - 1] == "reply")
            yield stage, point, try_point(before, scratch / "tried", command, outputs, point, expected, again)
    shutil.rmtree(before)


def place(operations: list[str], point: str) -> int:
    """Which of a stage's operations, from 1, is the N-th of its kind: `reply.2`."""
    kind, _, number = point.partition(".")
    return [at for at, operation in enumerate(operations, 1) if operation == kind][int(number) - 1]


def try_point(
    before: Path, folder: Path, command: list[str], outputs: list[str], point: int, expected: dict[str, str], again: int
) -> str:
    """Kill the stage at one point, run it again; what is wrong then, "" when nothing is.

    again: how many requests the judge may see twice.
    """
    shutil.copytree(before, folder)
    Path(os.environ[ASKED]).write_text("")
    try:
        if (status := run(folder, command, kill_before=point)) != -signal.SIGKILL:
            return f"it was not killed, and ended with {status}"
        for output in outputs:
            if (folder / output).is_dir():
                shutil.rmtree(folder / output)
            else:
                (folder / output).unlink(missing_ok=True)
        if status := run(folder, command):
            return f"exit status {status}: {(folder / 'stage.log').read_text()[-600:]}"
        found = hashes(folder)
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if different or asked_again() != again:
            return f"differs: {', '.join(different) or 'nothing'}; asked again: {asked_again()}, expected {again}"
        return ""
    finally:
        shutil.rmtree(folder)


def main() -> int:
    """Sweep, and say for each stage how many points ended with equal hashes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=list(STAGES))
    parser.add_argument("--every", type=int, default=1, help="try every N-th point")
    arguments = parser.parse_args()
    started, tried, wrong = time.monotonic(), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        for stage, point, what in sweep(arguments.stages, Path(scratch), arguments.every):
            tried[stage] += 1
            if what:
                wrong[stage] += 1
                print(f"  {stage} killed before operation {point}: {what}", flush=True)
    for stage in tried:
        print(f"{stage}: {tried[stage] - wrong[stage]} of {tried[stage]} kill points end with equal hashes")
    print(f"{time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
