"""A few of the kill points that `python -m tests.support.kill_sweep` tries, clean-up included.

Of the probe: in the middle of sampling, in the middle of judging, and between its files.
"""

import subprocess
import sys

from tests.support.checkout import REPOSITORY, environment

POINTS = (
    "pretrain:8", "train:8", "train:68", "sample:8", "judge:8", "probe:8", "probe:56", "probe:98",
    "aggregate:8", "aggregate:128",
)  # fmt: skip


def test_some_kill_points_of_every_stage_end_with_equal_hashes():
    command = [sys.executable, "-m", "tests.support.kill_sweep", *POINTS]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("kill points end with equal hashes") == 6
