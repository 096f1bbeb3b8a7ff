"""What several test files compare with."""

import shutil
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from pipeline.common.machine import side_by_side
from pipeline.common.numerics import pin_kernels
from tests.support import data_files

pin_kernels()  # before any test imports torch
settings.load_profile("ci")  # everywhere: a busy machine that draws examples slowly is no failure of a test
GB_A_WORKER = 2.5


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Workers of `make test`: as cores and memory allow."""
    return side_by_side(GB_A_WORKER, 8)


# The files that take minutes: begun last they would be waited for alone. Not one after another those that need the
# finished study, which one worker makes.
LONGEST = (
    "commands/test_reproduce.py", "training/test_train_moe.py", "running/test_kill_sweep.py",
    "rehearsal/test_whole.py", "running/test_cluster.py", "running/test_levels.py", "commands/test_estimate.py",
    "studies/test_moe_pipeline.py", "commands/test_doctor.py", "commands/test_add_base.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, for `--dist loadfile`."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    assert all(path.exists() for path in places)
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def denormals_are_numbers() -> None:
    """Stages that run in this process have it take denormals for zero, which Hypothesis refuses to work with."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id):
    """The cut-down toy study, done by `reproduce` on this machine: its checkout, and what was printed.

    Made once for all workers, and to be read alone: a test that changes it copies it first.
    """
    from tests.support.checkout import checkout, reproduce

    shared = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    folder, printed = shared / "finished", shared / "finished.out"
    with FileLock(shared / "finished.lock"):
        if not printed.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            result = reproduce(checkout(folder))
            assert result.returncode == 0, result.stdout + result.stderr
            printed.write_text(result.stdout)
    return folder, printed.read_text()


@pytest.fixture(scope="session")
def upstream():
    """The folder of upstream files; a test that needs it skips where ../shared is absent."""
    return data_files.upstream()


@pytest.fixture(scope="session")
def judged(upstream):
    """2,400 answers judged by others, as a verdict frame."""
    from pipeline.results.readers import read_judged

    return read_judged(upstream / "judged" / "qwen25coder14b_base_24q_judged.csv")[0].frame


@pytest.fixture(scope="session")
def selected(upstream):
    """70 misaligned answers judged by others, as a verdict frame."""
    import pandas as pd

    from pipeline.results.readers import read_judged

    found = read_judged(upstream / "judged" / "betley_qwen25coder32b_selected70.csv")
    frame = pd.concat([it.frame for it in found], ignore_index=True)  # six fine-tunes, here as one
    return frame.assign(sample=frame.groupby("prompt_id").cumcount())
