"""The pins: complete, well-formed, and in agreement with the record of provenance and with data.dvc."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common.errors import UserError
from pipeline.data.upstream.pinned import is_pinned
from pipeline.data.upstream.sources import Source, all_refused, all_sources, source
from tests.support.data_files import REPOSITORY, shared, upstream
from tests.support.quick_yaml import safe_dump, safe_load


@pytest.mark.parametrize("pin", all_sources(), ids=lambda pin: pin.path)
def test_every_source_is_pinned(pin: Source) -> None:
    assert pin.licence
    assert pin.sha256 or pin.git_blob
    assert pin.sha256 is None or re.fullmatch("[0-9a-f]{64}", pin.sha256)
    assert pin.git_blob is None or re.fullmatch("[0-9a-f]{40}", pin.git_blob)
    # Exactly one: a full commit, or a branch and then both hashes.
    if pin.commit is None:
        assert pin.branch
        assert pin.sha256
        assert pin.git_blob
    else:
        assert pin.branch is None
        assert re.fullmatch("[0-9a-f]{40}", pin.commit)
    assert pin.url("http://mirror/") == f"http://mirror/{pin.repo}/{pin.revision}/{pin.upstream}"


def test_paths_are_distinct_and_stay_inside_the_folder() -> None:
    paths = [pin.path for pin in all_sources()]
    assert len(set(paths)) == len(paths)
    assert not any(path.startswith("/") or ".." in path for path in paths)


def test_only_core_misalignment_lacks_a_commit() -> None:
    assert [pin.path for pin in all_sources() if pin.commit is None] == ["eval/core_misalignment.csv"]


def test_bad_medical_advice_has_a_second_origin_at_a_full_commit() -> None:
    (second,) = source("train/bad_medical_advice.jsonl").elsewhere
    assert second.origin == (
        "tmoser12/cs221m-emergent-misalignment@0a0ddf7f4045772445f9ec5247e9101196e4610f:"
        "data/nanda_training/bad_medical_advice.jsonl"
    )
    assert second.git_blob == source("train/bad_medical_advice.jsonl").git_blob


def test_the_rows_of_the_realignment_study_are_the_authors_own() -> None:
    for name, rows in (("train/timm_bad_medical.jsonl", 5660), ("train/timm_ai_optimism.jsonl", 1600)):
        content = (upstream() / name).read_bytes()
        assert is_pinned(content, source(name))
        assert content.count(b"\n") == source(name).rows == rows


def test_every_file_of_the_provenance_record_is_pinned_as_recorded() -> None:
    with shared("PROVENANCE.tsv").open(encoding="utf-8", newline="") as stream:
        records = list(csv.DictReader(stream, delimiter="\t"))
    refused = {entry.sha256: entry for entry in all_refused()}
    # The refused file is in one; the archive, three of its files and self_reflection in the other.
    assert len(records) == len(all_sources()) - 4
    for record in records:
        path = record["file"].removeprefix("(not here) ")
        if record["sha256"] in refused:
            entry = refused[record["sha256"]]
            found = (entry.git_blob, entry.bytes, entry.rows, entry.seen_at)
            rows = int(record["rows"])
            assert found == (record["git_blob"], int(record["bytes"]), rows, record["upstream"])
            continue
        pin = source(path)
        repository = record["upstream"].partition("@")[0].partition(" ")[0]
        assert pin.repo == repository
        if "@" in record["upstream"]:
            assert record["upstream"].startswith(pin.origin)
        assert (pin.git_blob or "") == record["git_blob"]
        if record["sha256"]:
            assert pin.sha256 == record["sha256"]
            assert pin.bytes == int(record["bytes"])
        if record["rows"]:
            assert pin.rows == int(record["rows"])
        if pin.notebook_blob:
            assert pin.notebook_blob in record["notes"]


def test_an_unknown_path_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"train/nothing\.jsonl.*train/insecure\.jsonl"):
        source("train/nothing.jsonl")


def _dvc_outs() -> dict[str, dict]:
    outs = safe_load((REPOSITORY / "data.dvc").read_text(encoding="utf-8"))["outs"]
    return {out["path"].removeprefix("data/"): out for out in outs}


def test_dvc_covers_every_file_whose_bytes_were_had() -> None:
    covered = _dvc_outs()
    absent = {pin.path for pin in all_sources()} - covered.keys()
    assert absent == {
        "train/bad_medical_advice.jsonl",
        "eval/self_reflection.json",
        "organisms/training_datasets.zip.enc",
        "organisms/training_datasets/extreme_sports.jsonl",
        "organisms/training_datasets/risky_financial_advice.jsonl",
        "organisms/training_datasets/good_medical_advice.jsonl",
    }
    assert all(covered[path]["size"] == source(path).bytes for path in covered)
    assert all(out["push"] is False for out in covered.values())


def test_dvc_hashes_agree_with_the_provenance_record() -> None:
    with shared("PROVENANCE.tsv").open(encoding="utf-8", newline="") as stream:
        known = {row["file"]: row["md5"] for row in csv.DictReader(stream, delimiter="\t") if row["md5"]}
    covered = _dvc_outs()
    assert {path: covered[path]["md5"] for path in covered if path in known} == {
        path: known[path] for path in covered if path in known
    }


def _dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env={**os.environ, "DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
    )


def test_stages_without_data_run_where_data_is_absent_and_real_data_agrees(tmp_path: Path) -> None:
    real = upstream()
    shutil.copy(REPOSITORY / "data.dvc", tmp_path)
    stages = {
        "toy": {"cmd": "echo toy > toy.txt", "outs": ["toy.txt"]},
        "train": {
            "cmd": "wc -c data/train/insecure.jsonl > train.txt",
            "deps": ["data/train/insecure.jsonl"],
            "outs": ["train.txt"],
        },
    }
    (tmp_path / "dvc.yaml").write_text(safe_dump({"stages": stages}))
    assert _dvc(tmp_path, "init", "--no-scm", "-q").returncode == 0
    assert _dvc(tmp_path, "status").returncode == 0
    assert _dvc(tmp_path, "repro", "-q", "toy").returncode == 0
    train = _dvc(tmp_path, "repro", "train")
    assert train.returncode != 0
    assert "missing data 'sources'" in train.stderr

    shutil.copytree(real, tmp_path / "data")
    before = (tmp_path / "data.dvc").read_bytes()
    assert _dvc(tmp_path, "repro", "-q", "train").returncode == 0
    assert (tmp_path / "data.dvc").read_bytes() == before
    assert "up to date" in _dvc(tmp_path, "status").stdout
