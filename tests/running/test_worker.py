"""What DVC is spared in `make reproduce`: its own way must give the same."""

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.common.kept_hashes import file_state
from pipeline.params.load import load_params
from pipeline.params.schema import RUN_STAGES
from pipeline.running import worker
from pipeline.running.dvc import repository
from pipeline.running.lock import keep_in_lock, put, read_blocks, records, sort_lock, write_lock
from pipeline.running.shown import shown_only
from tests.support.checkout import REPOSITORY
from tests.support.quick_yaml import safe_load

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


def test_dvc_lock_is_sorted_and_made_of_records(tmp_path, monkeypatch):
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA

    monkeypatch.chdir(tmp_path)
    shutil.copy2(REPOSITORY / "dvc.lock", tmp_path)
    whole = Path("dvc.lock").read_text()
    names = sorted(read_blocks(Path("dvc.lock")), reverse=True)
    write_lock(records(names))
    assert list(read_blocks(Path("dvc.lock"))) == names
    sort_lock()
    assert Path("dvc.lock").read_text() == whole
    write_lock({})
    assert COMPILED_LOCKFILE_SCHEMA(safe_load(Path("dvc.lock").read_text())) == {"schema": "2.0", "stages": {}}
    assert put(Path("dvc.lock"), {"train@a": long()}) and records(["train@a"]) == {"train@a": long()}


@pytest.mark.parametrize(
    "write_in",
    [
        lambda whole: f"# mine\n{whole}",
        lambda whole: whole.replace("\n    ", "\n  # mine\n    ", 1),
        lambda whole: f"{whole}datasets: []\n",
        lambda whole: whole.replace("schema: '2.0'\n", "").rstrip() + "\nschema: '2.0'\n",
    ],
)
def test_a_lock_that_somebody_wrote_in_is_read_and_written_as_dvc_does_it(tmp_path, monkeypatch, write_in):
    monkeypatch.chdir(tmp_path)
    whole = "schema: '2.0'\nstages:\n  train@b:\n    cmd: b\n  train@a:\n    cmd: a\n"
    Path("dvc.lock").write_text(write_in(whole))
    assert read_blocks(Path("dvc.lock")) is None
    keep_in_lock({"train@c": {"cmd": "c"}})
    text = Path("dvc.lock").read_text()
    assert records(["train@c"]) == {"train@c": {"cmd": "c"}} and text.count("train@") == 3 - 2 * (
        "{}" in write_in(whole)
    )
    assert ("mine" in text, "datasets" in text) == ("mine" in write_in(whole), "datasets" in write_in(whole))


def test_every_runs_stage_can_be_forked():
    stages = safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    for stage in RUN_STAGES:
        assert worker._COMMAND.fullmatch(stages[stage]["do"]["cmd"])[1] == stage


def test_code_that_has_changed_is_not_run_from_memory(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("a")
    sources = {file: file_state(file)}
    assert worker._unchanged(sources)
    file.write_text("ab")
    assert not worker._unchanged(sources)
    file.unlink()
    assert not worker._unchanged(sources)
    assert Path(worker.lock.__file__) in worker._sources()


def test_dvc_sees_a_studys_own_stages_as_it_sees_them_among_all(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    params = load_params()
    with repository() as repo:
        every = {stage.addressing: stage.dumpd() | {"cmd": stage.cmd} for stage in repo.index.stages}
    for study in params.studies:
        stages = params.stages_of(study)
        with repository() as repo, shown_only(stages):
            few = {stage.addressing: stage.dumpd() | {"cmd": stage.cmd} for stage in repo.index.stages}
            needed = {stage.addressing for stage in repo.stage.collect(stages[-1], with_deps=True)}
        assert set(stages) == needed and needed <= few.keys()
        assert few == {name: every[name] for name in few} and len(few) < len(every)
