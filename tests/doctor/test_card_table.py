"""The documents' tables of what the hub studies take are what the code says, on a fresh clone."""

from pathlib import Path

import pytest

from pipeline.doctor.card_table import card_tables
from pipeline.params.load import load_params
from tests.support.data_files import REPOSITORY


def test_the_documents_tables_are_what_the_code_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    params = load_params(REPOSITORY / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    studies = [name for name, study in params.studies.items() if study.world == "hub"]
    for name, table in zip(("README.md", "docs/artifact-appendix.md"), card_tables(params, studies), strict=True):
        document = (REPOSITORY / name).read_text(encoding="utf-8")
        assert table in document, (
            f"{name} has another; `python -m pipeline estimate --cards` in a fresh clone says:\n{table}"
        )
