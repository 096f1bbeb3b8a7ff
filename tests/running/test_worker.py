"""What DVC is spared in `make reproduce`: its own way must give the same."""

import shutil

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.params.load import load_params
from pipeline.running.lock import keep_in_lock, put, read_blocks, records, sort_lock, write_lock
from pipeline.running.shown import shown_only
from tests.support.checkout import REPOSITORY

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")) | st.sampled_from("\n\t:#'-"))
# DVC reads and writes the other stages' entries too, and changes a far float's last digit.
FLOAT = st.sampled_from([0.0, -0.5, 0.1, 1e-05, 2.5e-05, 0.006, 30.0, 1e20])
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOAT | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ENTRY = st.dictionaries(TEXT, VALUE, max_size=3).map(lambda values: {"cmd": "python"} | values)
NAME = st.from_regex(r"[a-z]{1,8}@[A-Za-z0-9][A-Za-z0-9_-]{0,8}", fullmatch=True)
LINES = "two\n\nlines\n  indented"


def long(**more):
    return {"cmd": "exec " + "a word " * 40, "params": {"params.yaml": {"runs.a": LINES}}, "outs": []} | more


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAME, ENTRY, max_size=4), st.dictionaries(NAME, ENTRY, min_size=1, max_size=3))
@example({"train@a": long(), "train@b": {"cmd": "b"}}, {"train@a": long(outs=[{"path": "a"}]), "train@c": long()})
def test_records_are_put_into_dvc_lock_as_dvc_puts_them(tmp_path, before, new):
    from dvc.utils.serialize import dump_yaml, modify_yaml

    ours, theirs = tmp_path / "ours.lock", tmp_path / "theirs.lock"
    for path in (ours, theirs):
        path.unlink(missing_ok=True)
        if before:
            dump_yaml(str(path), {"schema": "2.0", "stages": before})
    with modify_yaml(str(theirs)) as lock:
        lock.setdefault("schema", "2.0")
        lock.setdefault("stages", {}).update(new)
    put(ours, new)
    assert ours.read_bytes() == theirs.read_bytes()
    assert not put(ours, new)


def test_a_lock_that_somebody_wrote_in_is_left_to_dvc(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy2(REPOSITORY / "dvc.lock", tmp_path)
    whole = (tmp_path / "dvc.lock").read_text()
    names = sorted(read_blocks(tmp_path / "dvc.lock"), reverse=True)
    write_lock(records(names))
    keep_in_lock({})
    assert list(read_blocks(tmp_path / "dvc.lock")) == names
    sort_lock()
    assert (tmp_path / "dvc.lock").read_text() == whole
    for text in (f"# mine\n{whole}", whole.replace("\n    ", "\n  # mine\n    ", 1), f"{whole}datasets: []\n"):
        (tmp_path / "dvc.lock").write_text(text)
        with pytest.raises(ValueError, match="is not as DVC writes it"):
            put(tmp_path / "dvc.lock", {"train@a": {}})
        assert (tmp_path / "dvc.lock").read_text() == text


def test_dvc_sees_a_studys_own_stages_as_it_sees_them_among_all(monkeypatch):
    from dvc.repo import Repo

    monkeypatch.chdir(REPOSITORY)
    stages = load_params().stages_of("toy")
    with Repo() as repo, shown_only(stages):
        few = {stage.addressing: stage.dumpd() | {"cmd": stage.cmd} for stage in repo.index.stages}
        lines = {stage.addressing for stage in repo.stage.collect("aggregate@toy", with_deps=True)}
    with Repo() as repo:
        every = {stage.addressing: stage.dumpd() | {"cmd": stage.cmd} for stage in repo.index.stages}
    assert set(stages) == lines and lines <= few.keys()
    assert few == {name: every[name] for name in few} and len(few) < len(every) / 5
