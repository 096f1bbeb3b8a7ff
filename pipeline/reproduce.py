"""Rebuild a study: every stage that is missing or out of date, then its tables and figures.

What is to be done, and in which order, is dvc.yaml's; this command starts `dvc repro`, shows how far it
is, and prints the study's headline. Bases are independent of each other, and so are chains of runs, so on a CPU
several `dvc repro` work side by side, as DVC's manual suggests: the bases first, then each base's chains.
"""

import argparse
import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from threading import Lock
from typing import Any

from pipeline import provenance
from pipeline.data.fetch import FOLDER as DATA
from pipeline.data.fetch import PARTIALS, fetch
from pipeline.data.origins import Network
from pipeline.data.sources import GITHUB_RAW, all_sources
from pipeline.data.worlds import check_data
from pipeline.errors import UserError, with_causes
from pipeline.machine import AMPERE, gpus, side_by_side
from pipeline.params import CACHE, FIGURES, RUN_STAGES, Params, load_params

MEMORY_A_JOB_GB = 1.2
COLLECTED_S = 10.0
LOG = CACHE / "reproduce.log"
LOCK = Path("dvc.lock")
READERS = Path(".dvc/tmp/rwlock")
_RUNNING = re.compile(r"Running stage '(\S+?)'")
_FAILED = re.compile(r"failed to reproduce '(\S+?)'")
_BLOCKED = "is busy, it is being blocked by"
_SKIPPED = re.compile(r"Stage '(\S+?)' (?:didn't change|is cached)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--study", help="a name under studies in params.yaml (default: what this machine can run)")
    parser.add_argument(
        "--jobs",
        type=_count,
        help="bases, then chains of runs, worked on side by side (default: one a core, 3 at most; hub studies 1)",
    )
    parser.add_argument(
        "--engine",
        choices=("dvc", "ray"),
        default="dvc",
        help="dvc: on this machine; ray: on a cluster (docs/cluster.md)",
    )


def main(args: argparse.Namespace) -> None:
    """Reproduce the study and print its headline."""
    params = load_params()
    name, why = choose_study(params, args.study)
    print(f"Study: {name}, because {why}.", flush=True)
    started = time.monotonic()
    with _one_at_a_time():
        if changed(f"aggregate@{name}"):
            if args.engine == "ray":
                from pipeline.cluster import head

                head.reproduce(params, name)
            else:
                reproduce(params, name, args.jobs or default_jobs(params, name))
    _print_results(name, time.monotonic() - started)
    provenance.write(params, name)


def choose_study(params: Params, asked: str | None) -> tuple[str, str]:
    """The study to reproduce, and why it is that one."""
    if asked:
        params.study(asked)
        return asked, "you asked for it"
    gpu = next((gpu.name for gpu in gpus().found if gpu.capability >= AMPERE), None)
    if not gpu:
        return "toy", "no Ampere-or-newer GPU was found here; it runs on a CPU in minutes"
    if torch_is_cpu_build():
        return "toy", f"this machine has a GPU ({gpu}), but the packages are those of the CPU lock (see `make doctor`)"
    return "moe", f"this machine has an Ampere-or-newer GPU ({gpu})"


def torch_is_cpu_build() -> bool:
    """Whether the torch that is installed can use no GPU; False before set-up."""
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


def fetch_what_is_missing(params: Params, name: str) -> None:
    """Fetch the upstream files, unless all that the study reads is there and verified."""
    try:
        check_data(params, name)
    except UserError as error:
        print(f"{error}\nFetching.", flush=True)
        fetch(all_sources(), Network(GITHUB_RAW, PARTIALS), DATA)


def default_jobs(params: Params, name: str) -> int:
    """How many bases or chains to work on side by side: as cores, memory and runs allow; one where a GPU is needed."""
    if params.study(name).world == "hub":
        return 1
    return side_by_side(MEMORY_A_JOB_GB, min(3, len(params.runs_of(name))))


def reproduce(params: Params, name: str, jobs: int) -> None:
    """Run `dvc repro` for the study, `jobs` of them side by side, until every stage is done.

    A failure stops the part it is in, and a base's all of its runs; everything else is done.
    Raises UserError with the failed stages' last words; what was finished stays.
    """
    if params.study(name).world == "hub":
        fetch_what_is_missing(params, name)
    shares = share_out(params, name, jobs)
    progress = Progress(params.stages_of(name))
    CACHE.mkdir(exist_ok=True)
    LOG.write_text("", encoding="utf-8")

    def runs(base: Future[str | None], stages: list[str]) -> str | None:
        """Their failure, if their base is made: what became of it is said once."""
        return None if base.result() else repro(stages, progress)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            # A base takes as long as several runs, so all come before any run: what is at work at the end is short.
            made = {base: pool.submit(repro, [params.stage_of_base(base)], progress) for base in shares}
            done = [pool.submit(runs, made[base], stages) for base, parts in shares.items() for stages in parts]
            failures = [failure for task in [*made.values(), *done] if (failure := task.result())]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if not failures and (failure := repro([f"aggregate@{name}"], progress)):
        failures = [failure]
    sort_lock()
    if failures:
        raise UserError("\n".join(failures) + f"\nWhat was finished is kept; the whole output is in {LOG}.")


def share_out(params: Params, name: str, jobs: int) -> dict[str, list[list[str]]]:
    """The stages of a study's runs in `jobs` parts, or fewer, for each base, the base of the most runs first.

    Runs of a chain wait for each other and so are in one part; long chains are dealt out first, base runs last.
    """
    chains: dict[str, list[str]] = {}
    for run in sorted(params.runs_of(name), key=lambda run: len(params.chain(run))):
        chains.setdefault(params.chain(run)[0], []).append(run)
    shares: dict[str, list[list[str]]] = {}
    for base, _ in Counter(map(params.base_of, params.runs_of(name))).most_common():
        own = [chain for first, chain in chains.items() if params.base_of(first) == base]
        own.sort(key=lambda chain: (len(chain), params.run(chain[0]).data is not None), reverse=True)
        parts = [[run for chain in own[part::jobs] for run in chain] for part in range(min(jobs, len(own)))]
        shares[base] = [[f"{stage}@{run}" for run in runs for stage in RUN_STAGES] for runs in parts]
    return shares


def put_aside_what_is_cut_short() -> bool:
    """Move what cannot be read of dvc.lock, and of DVC's list of who reads what, to the cache folder; is there any?

    DVC does not write them in one piece, so a kill may leave a part. DVC's run cache knows what dvc.lock said.
    """
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    found = False
    # Where there is no repository, or another DVC holds it, nothing is found.
    with contextlib.suppress(DvcException), Repo() as repo, repo.lock:
        readers = {
            LOCK: lambda: Lockfile(repo, str(LOCK.resolve())).load(),
            READERS: lambda: json.loads(READERS.read_bytes()),
        }
        for path, read in readers.items():
            try:
                if path.exists():
                    read()
            except (DvcException, ValueError) as error:
                aside = path.replace(CACHE / f"{path.name}.cut_short")
                print(f"{path} cannot be read ({with_causes(error)}). It is now {aside}, and made again.", flush=True)
                found = True
    return found


def changed(stage: str) -> bool:
    """Whether DVC finds anything to do for a stage and all that it depends on.

    Its files that a kill cut short are put aside: then there is.
    Raises UserError where DVC cannot tell, as other files of its own are broken.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return bool(out_of_date(repo, stage))
    except LockError:
        return True  # another DVC is at work, or was killed: `dvc repro` waits for it
    except DvcException as error:
        if put_aside_what_is_cut_short():
            return True
        raise UserError(f"DVC cannot go on: {with_causes(error)}") from error


def out_of_date(repo: Any, stage: str) -> dict[str, Any]:
    """DVC's status of a stage and all that it depends on in `repo` (a dvc.repo.Repo): name -> what changed.

    DVC parses params.yaml again for every stage that reads it, which takes longer than everything else here;
    nothing changes the file meanwhile, so it is parsed once.
    """
    from dvc.utils.serialize import LOADERS, load_yaml

    LOADERS[".yaml"] = functools.cache(load_yaml)
    try:
        found: dict[str, Any] = repo.status(targets=[stage], with_deps=True)
        return found
    finally:
        del LOADERS[".yaml"]


@dataclass
class Progress:
    """Which of a study's stages are done, and how long those to come may take."""

    stages: list[str]
    started: float = field(default_factory=time.monotonic)
    done: set[str] = field(default_factory=set)
    running: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def start(self, stage: str) -> None:
        """A stage begins."""
        with self.lock:
            self.running[stage] = time.monotonic()

    def finish(self, stage: str, *, ran: bool) -> None:
        """A stage is done; say so, unless it was up to date and known to be."""
        with self.lock:
            if stage in self.done:
                return
            self.done.add(stage)
            took = time.monotonic() - self.running.pop(stage, time.monotonic())
            if ran:
                self.seconds.setdefault(stage.partition("@")[0], []).append(took)
            text = f"{took:5.1f} s" if ran else "up to date"
            elapsed = clock(time.monotonic() - self.started)
            print(
                f"[{len(self.done):>3}/{len(self.stages)}] {elapsed}  {stage:<36} {text:>10}{self._left()}", flush=True
            )

    def _left(self) -> str:
        """Time left if stages take as long as those of their kind have, as many at once as so far.

        Nothing until a stage of every kind that is to come, but the last, has run.
        """
        left = [stage.partition("@")[0] for stage in self.stages if stage not in self.done]
        times = [value for values in self.seconds.values() for value in values]
        if not left or not times or not set(left) - {"aggregate"} <= self.seconds.keys():
            return ""
        at_once = sum(times) / (time.monotonic() - self.started)
        seconds = sum(fmean(self.seconds.get(kind, times)) for kind in left)
        return f"   about {clock(seconds / at_once)} left"


def repro(stages: list[str], progress: Progress) -> str | None:
    """Have DVC do these stages, one after another; returns None, or what failed and its last words.

    What they depend on must be among those before them, or be done: DVC is not let to look at it, as it takes a base
    that another `dvc repro` reads for busy. It also takes one for busy whose reader was killed, until the system has
    collected that process, seconds later on some machines; so it is asked again for as long.
    """
    started = time.monotonic()
    while (failure := _dvc_repro(stages, progress)) and _BLOCKED in failure:
        if time.monotonic() - started > COLLECTED_S:
            return f"{failure}. Wait for these processes, or end them; if they are not DVC's, remove .dvc/tmp/rwlock."
        time.sleep(0.5)
    return failure


def _dvc_repro(stages: list[str], progress: Progress) -> str | None:
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *stages]
    # Unbuffered: a stage's line must come when it begins, not when a pipe's buffer is full.
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PATH": _path()}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    )
    assert process.stdout is not None
    current: str | None = None
    tail: list[str] = []
    with LOG.open("a", encoding="utf-8", buffering=1) as log:
        for line in process.stdout:
            log.write(line)
            tail = [*tail[-14:], line.rstrip().rpartition("\r")[2]]
            if started := _RUNNING.search(line):
                if current:
                    progress.finish(current, ran=True)
                current = started[1]
                progress.start(current)
            elif skipped := _SKIPPED.search(line):
                progress.finish(skipped[1], ran=False)
    if process.wait() == 0:
        if current:
            progress.finish(current, ran=True)
        return None
    words = [line.strip() for line in tail if line.startswith(("error:", "ERROR:", "  (PID "))] or tail[-3:]
    failed = next((found[1] for line in tail if (found := _FAILED.search(line))), current)
    if current and failed != current:
        progress.finish(current, ran=True)
    return f"{failed or ', '.join(stages)} failed: " + " ".join(words)


def sort_lock() -> None:
    """Put dvc.lock's stages in alphabetical order: DVC appends them as they finish, which varies."""
    from dvc.utils.serialize import modify_yaml

    if LOCK.exists():
        with modify_yaml(str(LOCK)) as lock:
            lock["stages"] = dict(sorted(lock["stages"].items()))


def _path() -> str:
    """PATH with this Python first: dvc.yaml says `python`, and means the one that has the packages."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Refuse to start beside another `reproduce` in this checkout: both would write the same files."""
    import fcntl

    CACHE.mkdir(exist_ok=True)
    with (CACHE / "reproduce.lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another `make reproduce` is at work in this checkout; wait for it or stop it.") from None
        yield


def _print_results(name: str, seconds: float) -> None:
    """Print the report's first table, which is the headline, and where the figures are."""
    from pipeline.results.study_report import HEADLINE_TITLE

    folder = FIGURES / name
    report = (folder / "README.md").read_text(encoding="utf-8")
    headline = re.search(r"(?:^\|.*\n)+", report, re.MULTILINE)
    print(f"\n{HEADLINE_TITLE.format(study=name)}\n\n{headline[0] if headline else report}")
    for path in sorted(folder.glob("*.png")):
        print(f"figure  {path}")
    print(f"report  {folder / 'README.md'}\nDone in {clock(seconds)}.")


def clock(seconds: float) -> str:
    """Seconds as a person reads them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
