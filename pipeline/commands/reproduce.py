"""Rebuild a study: every stage that is missing or out of date, then its tables and figures.

What is to be done, and in which order, is dvc.yaml's; this command starts `dvc repro`, shows how far it
is, and prints the study's headline. Bases are independent of each other, and so are chains of runs, so on a CPU
several `dvc repro` work side by side, as DVC's manual suggests: the bases first, then each base's chains.
"""

import argparse
import contextlib
import re
import time
from collections.abc import Iterator

from filelock import FileLock, Timeout

from pipeline.commands import provenance, report
from pipeline.common.errors import UserError
from pipeline.common.numerics import has_avx2
from pipeline.common.paths import ARTIFACTS, CACHE, FIGURES, refuse_a_linked_folder
from pipeline.doctor.gate import check_cluster, check_study, table
from pipeline.params.checks import check_preregistration
from pipeline.params.edit import pin_files
from pipeline.params.load import load_params
from pipeline.params.schema import Params
from pipeline.running.choose import choose_study
from pipeline.running.committed import compare_with_committed
from pipeline.running.dvc import wait_for_left_over
from pipeline.running.levels import LEVELS, fetch_level
from pipeline.running.local import default_jobs, reproduce
from pipeline.running.progress import clock
from pipeline.running.status import is_changed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--study", help="a name under studies in params.yaml (default: what this machine can run)")
    parser.add_argument(
        "--jobs",
        type=_count,
        help="bases, then chains of runs, worked on side by side (default: one a core, 3 at most; hub studies 1)",
    )
    parser.add_argument(
        "--from",
        dest="level",
        choices=LEVELS,
        help="fetch this level of the study from EMOE_REMOTE or DVC's default remote, and do what comes after it",
    )
    parser.add_argument(
        "--engine",
        choices=("dvc", "ray"),
        default="dvc",
        help="dvc: on this machine; ray: on a cluster (docs/cluster.md)",
    )


def main(args: argparse.Namespace) -> None:
    """Reproduce the study and print its headline."""
    for written in pin_files(only_new=True):
        print(f"params.yaml now has the SHA-256 of {written}", flush=True)
    params = load_params()
    name, why = choose_study(params, args.study)
    if args.level and args.engine == "ray":
        raise UserError("--from does not go with --engine ray: what comes after a level is done on one machine.")
    print(f"Study: {name}, because {why}.", flush=True)
    check_preregistration(params.study(name))
    if params.study(name).world == "toy" and not has_avx2():
        print("This processor is no x86-64 with AVX2: the last digits of some results will not be the committed ones.")
    refuse_a_linked_folder()
    started = time.monotonic()
    with _one_at_a_time():
        wait_for_left_over()
        to_do = bool(args.level) or is_changed(params.stages_of(name))
        if args.level:
            fetch_level(params, name, args.level)
            reproduce(params, name, args.jobs or default_jobs(params, name), args.level)
        elif to_do:
            if args.engine == "ray":
                from pipeline.running.cluster import head

                check_cluster(params, name)
                head.reproduce(params, name)
            else:
                left_out = check_study(params, name)
                if left_out:
                    print("\n".join(["Left out, since this machine cannot do them:", *table(left_out)]), flush=True)
                reproduce(params, name, args.jobs or default_jobs(params, name), left_out=left_out)
    _print_results(name, time.monotonic() - started)
    provenance.write(params, name)
    _write_page(params, name, to_do)
    print(compare_with_committed(name))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Refuse to start beside another `reproduce` in this checkout: both would write the same files."""
    CACHE.mkdir(exist_ok=True)
    try:
        with FileLock(CACHE / "reproduce.lock", timeout=0):
            yield
    except Timeout:
        raise UserError("another `make reproduce` is at work in this checkout; wait for it or stop it.") from None


def _write_page(params: Params, name: str, to_do: bool) -> None:
    """Write the report's page and say where it is; without the answers, which it shows, say that there is none."""
    page = report.path_of(name)
    if not all((ARTIFACTS / name / "answers" / f"{run}.jsonl").exists() for run in params.runs_of(name)):
        page.unlink(missing_ok=True)  # of other verdicts
        print(f"page    not written: it shows the answers, which are not here (`--from {LEVELS[1]}` fetches them)")
        return
    if to_do or not page.exists():  # a no-op takes seconds, as long as the page does
        report.write(params, name)
    print(f"page    {page}  (open it in a browser)")


def _print_results(name: str, seconds: float) -> None:
    """Print the report's first table, which is the headline, and where the figures are."""
    from pipeline.results.report import HEADLINE_TITLE

    folder = FIGURES / name
    report = (folder / "README.md").read_text(encoding="utf-8")
    headline = re.search(r"(?:^\|.*\n)+", report, re.MULTILINE)
    print(f"\n{HEADLINE_TITLE.format(study=name)}\n\n{headline[0] if headline else report}")
    for path in sorted(folder.glob("*.png")):
        print(f"figure  {path}")
    print(f"report  {folder / 'README.md'}\nDone in {clock(seconds)}.")
