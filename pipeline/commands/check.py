"""Two minutes on a CPU: does what the repository claims hold on this machine?

The authors' published tables are audited; a smoke study (one base, two runs, one seed) goes through the real stages
and DVC, and is verified; this machine is looked at; the next command is named. Exit status 0: all of it holds.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from pipeline.common.paths import CACHE
from pipeline.running.smoke import make_smoke_checkout

FOLDER = CACHE / "check"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no arguments."""


def main(args: argparse.Namespace) -> int:
    """Run the check's steps, each to its end; return 0 when all of them hold."""
    started = time.monotonic()
    make_smoke_checkout(FOLDER)
    steps = {
        "the published tables, recomputed": (["audit"], Path()),
        "a smoke study, through the real stages": (["reproduce", "--study", "toy"], FOLDER),
        "the smoke study, against what it claims": (["verify", "--study", "toy"], FOLDER),
        "this machine": (["doctor", "--study", "toy"], Path()),
    }
    failed = [name for name, (command, folder) in steps.items() if not holds(name, command, folder)]
    seconds = time.monotonic() - started
    print(f"\n== check: {len(steps) - len(failed)} of {len(steps)} hold, in {seconds:.0f} s")
    if failed:
        print("Does not hold: " + "; ".join(failed))
        return 1
    print("Next: make reproduce STUDY=toy    (the whole toy study: minutes on a CPU; others: make estimate)")
    return 0


def holds(name: str, command: list[str], folder: Path) -> bool:
    """Whether a command of this package ends well in `folder`."""
    print(f"\n== {name}: python -m pipeline {' '.join(command)}", flush=True)
    python = [str(Path(sys.executable).absolute()), "-m", "pipeline"]
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    return subprocess.run([*python, *command], cwd=folder, env=environment, check=False).returncode == 0
