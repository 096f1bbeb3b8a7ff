"""Can this machine do the study, and if not, what is to be done about it?

One line a check: ok, warn (it works, or cannot be known here) or fail (the study cannot be done as things are),
each that is not ok with its remedy. Changes nothing and spends nothing. Works before set-up too, with a bare
Python: what needs the packages then says so. The exit status is 0 if nothing failed, else 1.

Keys and tokens are looked for, never shown; a key is sent to its own endpoint alone, a Hugging Face token to
HF_ENDPOINT alone. `--offline` asks nothing of any network.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from pipeline.common.machine import gpus
from pipeline.doctor.check import ROOT, Check
from pipeline.doctor.machine import (
    check_cores,
    check_disk,
    check_environment,
    check_git,
    check_gpus,
    check_memory,
    check_python,
    not_looked_at,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--study", help="a name under studies in params.yaml (default: what this machine can run)")
    parser.add_argument("--offline", action="store_true", help="ask nothing of any network")


def main(args: argparse.Namespace) -> int:
    """Print the checks; return 0 if none failed."""
    checks = []
    for check in examine(args.study, offline=args.offline):
        print(check, flush=True)
        checks.append(check)
    count = {level: sum(check.level == level for check in checks) for level in ("ok", "warn", "fail")}
    print(f"{count['ok']} ok, {count['warn']} warn, {count['fail']} fail.")
    return 1 if count["fail"] else 0


def examine(study: str | None, *, offline: bool) -> Iterator[Check]:
    """Every check, in order. Raises UserError for a study that params.yaml does not have."""
    python = check_python()
    yield python
    seen = gpus()
    name, needs_gpu, reason = None, None, "needs Python 3.11 or 3.12"
    if python.level == "ok":
        try:
            from pipeline.params.load import load_params
            from pipeline.running.choose import choose_study

            params = load_params(ROOT / "params.yaml")
            name, why = choose_study(params, study)
            needs_gpu = params.study(name).world == "hub"
            yield Check("ok", "study", f"{name}, because {why}")
        except ModuleNotFoundError as error:
            reason = f"needs the package {error.name}, which this Python lacks"
    if name is None:
        yield not_looked_at(reason)
    yield check_cores()
    yield check_memory()
    yield check_disk()
    yield from check_gpus(seen, needs_gpu)
    yield from check_git()
    yield check_environment(needs_gpu=bool(needs_gpu))
    if name is not None:
        try:
            from pipeline.doctor import study as doctor_study

            yield from doctor_study.examine(params, name, seen.found, offline=offline)
        except ModuleNotFoundError as error:
            yield not_looked_at(f"needs the package {error.name}, which this Python lacks")
