"""A study on this machine: bases first, then chains of runs, several side by side."""

import sys
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter

from pipeline.common.errors import UserError
from pipeline.common.machine import side_by_side
from pipeline.common.paths import CACHE, PARAMS
from pipeline.common.processes import end_descendants
from pipeline.params.bases import smallest_first
from pipeline.params.schema import RUN_STAGES, Params
from pipeline.running.dvc import LOG, repro
from pipeline.running.levels import stages_after
from pipeline.running.lock import sort_lock
from pipeline.running.prepare import fetch_what_is_missing
from pipeline.running.progress import Progress

Part = tuple[str, ...]  # stages that one `dvc repro` does, one after another

MEMORY_A_JOB_GB = 1.2
GRACE_S = 120.0  # a judge's replies in flight take a minute at most, by its usual timeout_s


def default_jobs(params: Params, name: str) -> int:
    """How many bases or chains to work on side by side: as cores, memory and runs allow; one where a GPU is needed."""
    if params.study(name).world == "hub":
        return 1
    return side_by_side(MEMORY_A_JOB_GB, min(3, len(params.runs_of(name))))


def reproduce(params: Params, name: str, jobs: int, level: str | None = None, left_out: Collection[str] = ()) -> None:
    """Run `dvc repro` for the study, `jobs` of them side by side, until every stage is done but those of `left_out`.

    level: the level (pipeline/running/levels.py) that is there already; only the stages after it are done.

    Without some of its runs a study has no tables: all else is done, and then said.
    A failure stops the part that it is in, and the parts that need it; all others are done.
    Raises UserError with the failed stages' last words; what was finished stays.
    """
    if params.study(name).world == "hub":
        fetch_what_is_missing(params, name)
    left = set(params.stages_of(name)) if level is None else {*stages_after(params, name, level)}
    progress = Progress([stage for stage in params.stages_of(name) if stage in left])
    CACHE.mkdir(exist_ok=True)
    LOG.write_text("", encoding="utf-8")
    # A toy run's stages take seconds, of which most are imports; a process that has used CUDA cannot fork.
    toy = params.study(name).world == "toy"

    def do(part: Part) -> str | None:
        """Its failure; of the stages that are left."""
        stages = [stage for stage in part if stage in left]
        return repro(stages, progress, share_imports=toy and len(stages) > 1) if stages else None

    with progress, ThreadPoolExecutor(jobs) as pool:
        try:
            failures = work_off(parts_of(params, name, jobs, left_out), do, pool, jobs)
        except BaseException:
            # Ctrl-C or SIGTERM has reached the stages too: a judge keeps the replies that are paid for, then all end.
            pool.shutdown(wait=False, cancel_futures=True)
            print("Waiting for stages to end, and for replies that are paid for.", file=sys.stderr, flush=True)
            end_descendants(GRACE_S)
            raise
    if left_out:
        failures.append(
            f"{len(left_out)} runs were left out, so there are no tables yet: {', '.join(left_out)}. Run this where "
            f"they can be done; or take them out of {PARAMS}, and out of what names them under studies.{name}."
        )
    sort_lock()
    if failures:
        raise UserError("\n".join(failures) + f"\nWhat was finished is kept; the whole output is in {LOG}.")


def work_off(
    parts: dict[Part, set[Part]], do: Callable[[Part], str | None], pool: ThreadPoolExecutor, jobs: int
) -> list[str]:
    """Do every part once those that it needs are done, the first ones first, `jobs` at a time; return the failures."""
    order, failures, stopped = list(parts), dict[Part, str](), set[Part]()
    ready: list[Part] = []
    running: dict[Future[str | None], Part] = {}
    sorter = TopologicalSorter(parts)
    sorter.prepare()
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=order.index)
        while ready and len(running) < jobs:
            part = ready.pop(0)
            if parts[part] & stopped:
                stopped.add(part)
                sorter.done(part)
            else:
                running[pool.submit(do, part)] = part
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            part = running.pop(future)
            if failure := future.result():
                failures[part] = failure
                stopped.add(part)
            sorter.done(part)
    return [failures[part] for part in order if part in failures]


def parts_of(params: Params, name: str, jobs: int, left_out: Collection[str] = ()) -> dict[Part, set[Part]]:
    """A study's parts, each with those that it needs, in the order in which they are best done.

    A toy base takes as long as several runs, so all come before any run: what is at work at the end is short. One of
    the hub is fetched once the runs on smaller ones are begun. The probe reads every adapter: where several parts are
    at work at once, the last base's are trained before its other stages, beside which the probe then is.
    """
    shares = share_out(params, name, jobs, left_out)
    bases: dict[str, Part] = {base: (params.stage_of_base(base),) for base in shares}
    toy = params.study(name).world == "toy"
    parts: dict[Part, set[Part]] = {part: set() for part in bases.values()} if toy else {}
    after: dict[Part, set[Part]] = {}
    for place, (base, shared) in enumerate(shares.items(), start=1):
        parts.setdefault(bases[base], set())
        for stages in shared:
            trained = tuple(stage for stage in stages if stage.startswith("train@"))
            first = trained if jobs > 1 and place == len(shares) else tuple(stages)
            parts[first] = {bases[base]}
            if rest := tuple(stage for stage in stages if stage not in first):
                after[rest] = {first}
    if left_out:
        return parts | after
    probe, aggregate = (f"probe@{name}",), (f"aggregate@{name}",)
    parts = parts | {probe: set(parts)} | after
    return parts | {aggregate: set(parts)}


def share_out(params: Params, name: str, jobs: int, left_out: Collection[str] = ()) -> dict[str, list[list[str]]]:
    """The stages of a study's runs in `jobs` parts, or fewer, for each base, in the order in which they are best done.

    Runs of a chain wait for each other and so are in one part. Of a toy study the base of the most runs comes first,
    long chains are dealt out first and base runs last: jobs end together. Of a hub study the smallest checkpoint comes
    first, and a base's untrained run: what is wrong with a machine, an account or a judge shows in the first hour.
    """
    chains: dict[str, list[str]] = {}
    kept = [run for run in params.runs_of(name) if run not in left_out]
    for run in sorted(kept, key=lambda run: len(params.chain(run))):
        chains.setdefault(params.chain(run)[0], []).append(run)
    toy = params.study(name).world == "toy"
    bases = [base for base, _ in Counter(map(params.base_of, kept)).most_common()]
    shares: dict[str, list[list[str]]] = {}
    for base in bases if toy else smallest_first(params, bases):
        own = [chain for first, chain in chains.items() if params.base_of(first) == base]
        own.sort(key=lambda chain: (len(chain), params.run(chain[0]).data is not None), reverse=toy)
        parts = [[run for chain in own[part::jobs] for run in chain] for part in range(min(jobs, len(own)))]
        shares[base] = [[f"{stage}@{run}" for run in runs for stage in RUN_STAGES] for runs in parts]
    return shares
