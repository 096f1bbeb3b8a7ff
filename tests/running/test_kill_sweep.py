"""A few of the kill points that `python -m tests.support.kill_sweep` tries, clean-up included.

Of the probe: in the middle of sampling, in the middle of judging, and between its files.
"""

import subprocess
import sys

from tests.support.checkout import REPOSITORY, environment

POINTS = (
    "pretrain:mkdir.8", "train:replace.1", "train:fsync.12", "sample:fsync.2", "judge:reply.3", "probe:fsync.3",
    "probe:reply.4", "probe:mkdir.37", "aggregate:fsync.2", "aggregate:fsync.50",
)  # fmt: skip


def test_some_kill_points_of_every_stage_end_with_equal_hashes():
    command = [sys.executable, "-m", "tests.support.kill_sweep", *POINTS]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("kill points end with equal hashes") == 6
