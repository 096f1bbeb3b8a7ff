"""What several test files compare with."""

import pytest

from pipeline.common.machine import side_by_side

GB_A_WORKER = 2.5


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Workers of `make test`: as cores and memory allow."""
    return side_by_side(GB_A_WORKER, 8)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The cut-down toy study, done by `reproduce` on this machine: its checkout, and what was printed."""
    from tests.support.checkout import checkout, reproduce

    folder = checkout(tmp_path_factory.mktemp("finished"))
    result = reproduce(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result.stdout
