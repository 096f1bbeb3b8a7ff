"""The processes that train one run: this one, or one a GPU, started and joined by torchrun."""

import os
import subprocess
import sys
from fnmatch import fnmatchcase

from pipeline.common.processes import mark, marked_ancestor

# Which process started the ranks that this one may be among.
LAUNCHER = "EMOE_LAUNCHER"
# torchrun's variables, by which torch and accelerate know that a process is one of several.
_TORCHRUN = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_*", "MASTER_ADDR",
    "MASTER_PORT", "TORCHELASTIC_*",
)  # fmt: skip
# What other launchers leave behind, and accelerate would take for settings of this training.
_OTHERS = ("ACCELERATE_*", "FSDP_*", "DEEPSPEED_*", "OMPI_*", "PMI_*", "MV2_*", "MPI_*", "PARALLELISM_CONFIG_*")


def start_ranks(devices: int, run: str) -> int:
    """Train the run in one process a device; return their exit status."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(devices)]
    environment = os.environ | {LAUNCHER: mark()}
    return subprocess.run(
        [*command, "-m", "--", "pipeline", "train", "--run", run], check=False, env=environment
    ).returncode


def is_rank() -> bool:
    """Whether this process is one of those that `start_ranks` started: a variable may be left over, a parent is not."""
    return marked_ancestor(os.environ.get(LAUNCHER, "")) is not None


def is_first() -> bool:
    """Whether this process writes results: the only one, or the first of several."""
    return not is_rank() or os.environ["LOCAL_RANK"] == "0"


def forget_other_launchers() -> None:
    """Take what other launchers left in the environment out of it: it would change or break the training."""
    patterns = _OTHERS if is_rank() else (*_TORCHRUN, *_OTHERS)
    for name in [name for name in os.environ if any(fnmatchcase(name, pattern) for pattern in patterns)]:
        del os.environ[name]
