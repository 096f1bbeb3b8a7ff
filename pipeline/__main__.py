"""The command line: `python -m pipeline COMMAND`.

Every command is a module with `add_arguments(parser)` and `main(args)`. Modules are imported only
when their command is asked for, so `--help` costs nothing.
"""

from __future__ import annotations  # `make doctor` must reach an old Python to say that it is too old

import argparse
import errno
import gc
import importlib
import io
import os
import pwd
import shutil
import sys
from collections.abc import Callable

from pipeline.common.errors import UserError
from pipeline.common.paths import refuse_a_linked_folder
from pipeline.common.signals import end_gently

COMMANDS = {
    "reproduce": ("pipeline.commands.reproduce", "rebuild a study, whatever of it is missing or out of date"),
    "check": ("pipeline.commands.check", "minutes: audit, a smoke study, verify, this machine, what next"),
    "estimate": ("pipeline.commands.estimate", "say what a study will take: requests, tokens, money, GPU hours, disk"),
    "pretrain": ("pipeline.pretrain", "make a toy base model from scratch (stage pretrain@BASE)"),
    "pin": ("pipeline.pin", "fetch a hub model at its pinned commit (stage pin@BASE)"),
    "train": ("pipeline.train", "fine-tune one run (stage train@RUN)"),
    "sample": ("pipeline.sample", "sample a run's answers to its suites (stage sample@RUN)"),
    "judge": ("pipeline.judge", "have a judge score a run's answers (stage judge@RUN)"),
    "probe": ("pipeline.probe", "find what carries a study's misalignment, and what removes it (stage probe@STUDY)"),
    "aggregate": ("pipeline.aggregate", "turn a study's verdicts into tables and figures (stage aggregate@STUDY)"),
    "audit": ("pipeline.commands.audit", "recompute the authors' published tables from their own suite means"),
    "published": ("pipeline.commands.published", "draw the authors' published numbers"),
    "score": ("pipeline.commands.score", "score judged files that others published"),
    "label": ("pipeline.commands.label", "draw a blind sample of answers for people to label, and compare"),
    "data": ("pipeline.commands.data", "fetch and verify the upstream files of data/"),
    "verify": ("pipeline.commands.verify", "a study against its published claims: PASS, DIFFERS, UNCLEAR or NOT RUN"),
    "new": ("pipeline.commands.new", "write a run of your own into params.yaml"),
    "add-base": ("pipeline.commands.add_base", "write a model of the hub, or of a folder, into params.yaml"),
    "pin-files": ("pipeline.commands.pin_files", "write the hashes of your own files into params.yaml"),
    "schema": ("pipeline.commands.schema", "print the JSON schema of params.yaml, for editors"),
    "report": ("pipeline.commands.report", "write the page that shows a study: claims, results, answers"),
    "export": ("pipeline.commands.export", "write answers and verdicts for Inspect, pandas, the hub, or an archive"),
    "provenance": ("pipeline.commands.provenance", "write down where a study's results come from"),
    "publish": ("pipeline.commands.publish", "push a finished study's levels to a DVC remote"),
    "rehearse": ("pipeline.commands.rehearse", "every kind of run of a hub study through every stage, on small bases"),
    "doctor": ("pipeline.commands.doctor", "can this machine do a study, and what is to be done if not"),
}

STAGES = {
    **dict.fromkeys(("pretrain", "pin"), "base"),
    **dict.fromkeys(("train", "sample", "judge"), "run"),
    **dict.fromkeys(("probe", "aggregate"), "study"),
}
FULL_BELOW_BYTES = 1 << 20
# Libraries make objects by the hundred thousand as they are imported, and they stay: looking for garbage among them
# every 700, as Python does, takes a fifth of the time of importing torch, transformers, peft and trl.
OBJECTS_BETWEEN_COLLECTIONS = 50_000
FULL_OR_CLOSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit status (0 done, 2 the user can fix it, 130 interrupted)."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    argv = sys.argv[1:] if argv is None else argv
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="emoe: train, sample, judge and aggregate emergent-misalignment studies.",
        epilog="commands:\n" + "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="COMMAND --help explains them")
    for stream in (sys.stdout, sys.stderr):
        # A terminal in latin-1 or ASCII gets a mark for what it cannot show, and the command goes on.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    _give_an_account()
    chosen = parser.parse_args(argv)
    end_gently(pass_on=chosen.command not in STAGES)
    module_name, text = COMMANDS[chosen.command]
    module = importlib.import_module(module_name)
    command = argparse.ArgumentParser(
        prog=f"python -m pipeline {chosen.command}",
        description=f"{text[0].upper()}{text[1:]}.\n\n{module.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(command)
    try:
        return _run(chosen.command, module.main, command.parse_args(chosen.arguments)) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in FULL_OR_CLOSED:
            raise
        print(f"error: cannot use {error.filename or 'a file'}: {error.strerror}.", file=sys.stderr)
        return 2
    except Exception:
        # safetensors, torch and sqlite report a full disk each in its own way.
        if shutil.disk_usage(".").free > FULL_BELOW_BYTES:
            raise
        print("error: the disk is full; free some space and run the same command again.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue.", file=sys.stderr)
        return 130


def _give_an_account() -> None:
    """Name the user and a home where the system knows none: a container's numeric user, which libraries ask for."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        for name in ("USER", "LOGNAME"):
            os.environ.setdefault(name, f"uid-{os.getuid()}")
        os.environ.setdefault("HOME", os.path.abspath(os.path.join(".cache", "home")))  # noqa: PTH100, PTH118


def _run(name: str, command: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int | None:
    """Run a command; a stage starts from an environment of its own, ends with its parent and is recorded."""
    if name not in STAGES or getattr(args, STAGES[name]) is None:
        return command(args)
    from pipeline.common.environment import DVC_PROCESS, STAGE, prepare_stage, started_by
    from pipeline.common.ledger import record
    from pipeline.common.processes import end_with_parent

    # dvc.yaml gives DVC's own name of the stage, STAGE@NAME.
    of = getattr(args, STAGES[name]).rpartition("@")[2]
    setattr(args, STAGES[name], of)
    stage = f"{name}@{of}"
    if whole := started_by(stage):  # one of the processes in which a stage trains on several devices
        end_with_parent(whole)
        return command(args)
    if DVC_PROCESS in os.environ:
        end_with_parent(int(os.environ[DVC_PROCESS]))
    elif "DVC_STAGE" in os.environ:
        end_with_parent()
    if "DVC_STAGE" in os.environ:
        refuse_a_linked_folder()
    removed = prepare_stage(stage)
    try:
        return record(stage, lambda: command(args), removed)
    finally:
        # What is started from here on is no part of the stage.
        os.environ.pop(STAGE, None)


if __name__ == "__main__":
    sys.exit(main())
