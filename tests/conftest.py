"""What several test files compare with."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under xdist a worker takes whole files; what needs the finished study is one group, which starts first."""
    for item in items:
        group = "finished" if "finished" in item.fixturenames else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: "finished" not in item.fixturenames)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The cut-down toy study, done by `reproduce` on this machine: its checkout, and what was printed."""
    from test_reproduce import checkout, reproduce

    folder = checkout(tmp_path_factory.mktemp("finished"))
    result = reproduce(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result.stdout
