"""`dvc repro` of some stages, as `make reproduce` starts it: python -m pipeline.running.worker STAGE...

DVC decides what is to be done, and does it, as from its own command line, but for this: the process ends with the one
that started it; it forgets readers and writers of files that have ended; it reads params.yaml and writes dvc.lock in a
tenth of DVC's time; and a run's stages may be children that find imported what most of them import (torch,
transformers, peft, trl: 5 s of a core). What comes out is the same, to the byte.
"""

import argparse
import atexit
import functools
import gc
import importlib
import logging
import multiprocessing
import os
import re
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import psutil

from pipeline.common.environment import DVC_PROCESS, scrub
from pipeline.common.kept_hashes import file_state
from pipeline.common.numerics import pin_kernels
from pipeline.common.processes import end_with_parent, lives, started
from pipeline.common.signals import end_gently
from pipeline.models.determinism import without_compiler
from pipeline.running import lock
from pipeline.running.shown import shown_only

_MARK = "emoe-dvc"
_COMMAND = re.compile(r'exec python -m pipeline (\w+) (--\w+) "\$DVC_STAGE"')  # as dvc.yaml has it
_IMPORTED = ("torch", "transformers", "peft", "openai", "pipeline.training.sft")


def main(arguments: list[str]) -> int:
    """Do stages, one after another, without a look at what they depend on; return DVC's exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.running.worker")
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--share-imports", action="store_true")
    args = parser.parse_args(arguments)
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no thread that may hold a lock when a stage is forked
    from dvc.cli import main as run_dvc

    end_with_parent()
    end_gently(pass_on=True)  # DVC ignores Ctrl-C while a stage runs, and stops after it
    os.environ[DVC_PROCESS] = str(os.getpid())  # a shell may stand between this process and a stage's
    know_the_dead()
    write_blocks()
    if args.share_imports:
        fork_stages()
    command = ["--wait-for-lock", "repro", "--single-item", *args.stages]
    # DVC writes this line beside the number of this process: a number alone soon names another one.
    sys.argv = [f"{_MARK}:{_boot()}:{started(psutil.Process())}", *command]
    with shown_only(args.stages):
        return int(run_dvc(command))


def know_the_dead() -> None:
    """Have DVC forget readers and writers that have ended."""
    import dvc.rwlock

    check = dvc.rwlock._check_blockers

    def check_blockers(tmp_dir: str, held: dict[str, Any], info: dict[str, Any], **options: Any) -> None:
        forget_dead(held)
        check(tmp_dir, held, info, **options)

    dvc.rwlock._check_blockers = check_blockers


def forget_dead(held: dict[str, Any]) -> None:
    """Remove from DVC's list of readers and writers, in place, those that have ended: others may have their numbers."""
    for path, entry in list(held["write"].items()):
        if entry and not _is_at_work(entry):
            del held["write"][path]
    for path, entries in list(held["read"].items()):
        held["read"][path] = [entry for entry in entries if _is_at_work(entry)]
        if not held["read"][path]:
            del held["read"][path]


def _is_at_work(entry: dict[str, Any]) -> bool:
    """Whether the process of an entry (its number, and the words that it was started with) lives."""
    program, *words = str(entry["cmd"]).split(" ")
    try:
        process = psutil.Process(int(entry["pid"]))
        if not lives(process):
            return False
        if program.startswith(f"{_MARK}:"):
            _, boot, when = program.split(":")
            return boot == _boot() and when == started(process)
        return " ".join(process.cmdline()).endswith(" ".join(words or ["dvc"]))
    except (psutil.NoSuchProcess, ValueError):
        return False
    except psutil.AccessDenied:
        return True  # another user's: it lives


def _boot() -> str:
    """What names this start of the machine; "" where nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def write_blocks() -> None:
    """Have DVC write a stage's own block of dvc.lock."""
    from dvc.dvcfile import Lockfile
    from dvc.stage.serialize import to_lockfile

    def dump_stages(self: Any, stages: list[Any], **options: Any) -> None:
        entries = {name: entry for stage in stages for name, entry in to_lockfile(stage, **options).items()}
        if lock.put(Path(self.path), entries):
            self.repo.scm_context.track_file(self.relpath)

    Lockfile.dump_stages = dump_stages


def fork_stages() -> None:
    """Have DVC start stages as children of this process, which imports once what most of them do.

    Where this project's own code has changed since, a stage starts as DVC starts it: DVC records the code as it is.
    """
    from dvc.stage import run
    from dvc.stage.exceptions import StageCmdFailedError

    in_a_shell, sources = run._run, _sources()

    def as_a_child(executable: str, command: str, **options: Any) -> None:
        words = _COMMAND.fullmatch(command)
        if not words or not _unchanged(_import_once() | sources):
            in_a_shell(executable, command, **options)
            return
        environment = options["env"]
        stage = [words[1], words[2], environment["DVC_STAGE"]]
        child = multiprocessing.get_context("fork").Process(target=_do, args=(stage, environment))
        child.start()
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as DVC does: a terminal's Ctrl-C is for the stage
        try:
            child.join()
        finally:
            signal.signal(signal.SIGINT, before)
        if child.exitcode:
            raise StageCmdFailedError(command, child.exitcode)

    run._run = as_a_child


@functools.cache
def _import_once() -> dict[Path, dict[str, int]]:
    """Import what stages import, in the environment that a stage gives itself; return this project's sources."""
    environment = dict(os.environ)
    scrub()
    pin_kernels()
    without_compiler()
    gc.disable()
    try:
        for name in _IMPORTED:
            importlib.import_module(name)
    finally:
        gc.enable()
        os.environ.clear()
        os.environ.update(environment)
    gc.freeze()  # or every child's first collection copies all that it shares with this process
    return _sources()


def _sources() -> dict[Path, dict[str, int]]:
    """The files of this project's modules that are imported, each with its state."""
    files = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "pipeline"]
    return {Path(file): file_state(Path(file)) for file in files if file}


def _unchanged(sources: dict[Path, dict[str, int]]) -> bool:
    return all(file.exists() and file_state(file) == state for file, state in sources.items())


def _do(stage: list[str], environment: dict[str, str]) -> None:
    """A stage, in this process: `python -m pipeline STAGE`, with the environment that DVC gives it."""
    atexit._clear()  # what is called at this process's end is the stage's own
    os.environ.clear()
    os.environ.update(environment)
    # DVC's are wrapped, and it has silenced this.
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    logging.getLogger("asyncio").setLevel(logging.NOTSET)
    sys.argv[1:] = stage
    try:
        runpy.run_module("pipeline", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
