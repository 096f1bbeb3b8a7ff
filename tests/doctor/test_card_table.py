"""README's tables of what the hub studies take are what the code says, on a fresh clone."""

from pathlib import Path

import pytest

from pipeline.doctor.card_table import card_tables
from pipeline.params.load import load_params
from tests.support.data_files import REPOSITORY


def test_readmes_tables_are_what_the_code_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    params, readme = load_params(REPOSITORY / "params.yaml"), (REPOSITORY / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    studies = [name for name, study in params.studies.items() if study.world == "hub"]
    said = card_tables(params, studies)
    missing = [line for line in said.splitlines() if line not in readme.splitlines()]
    assert not missing, (
        f"README.md has other lines; `python -m pipeline estimate --cards` in a fresh clone says:\n{said}"
    )
    # Nothing of the paper's study is refused on any of the three cards.
    assert "`moe` on" not in said and "`organisms` on 80 GB: 3 of the 13 runs on `qwen25_14b`" in said
