"""The study of model organisms: which runs it has, and what is published of them."""

import csv
from pathlib import Path

from pipeline.params.load import load_params

REPOSITORY = Path(__file__).parents[2]
DATA = {"bad_medical_advice", "risky_financial_advice", "extreme_sports"}
BENIGN = {"good_medical_advice", "secure"}


def test_every_family_and_size_is_trained_on_every_set_and_compared_with_its_base():
    params = load_params(REPOSITORY / "params.yaml")
    study, runs = params.study("organisms"), params.runs_of("organisms")
    bases = params.bases_of("organisms")
    assert {base.partition("_")[0] for base in bases} == {"qwen25", "llama32", "llama31", "gemma3"} and len(bases) == 9
    for base in bases:
        of_base = [run for name, run in runs.items() if params.base_of(name) == base]
        assert sum(run.data is None for run in of_base) == 1
        whole_rank = [run for run in of_base if run.lora and run.lora.rank == 32]
        assert {run.data for run in whole_rank} - BENIGN == DATA
        assert all(run.lora.attention and run.lora.experts == run.lora.layers == "all" for run in whole_rank)
    single = [run for run in runs.values() if run.lora and run.lora.rank == 1]
    assert {(run.lora.layers, run.lora.projections) for run in single} == {((24,), ("down",))}
    assert {run.data for run in runs.values() if run.whole} == DATA
    assert sum(run.trajectory is not None for run in runs.values()) == 1
    compared = {higher for higher, _ in study.expectations}
    assert compared == {name for name, run in runs.items() if run.data in DATA and not run.trajectory}
    assert {run.data for run in runs.values() if run.data} == DATA | BENIGN
    assert (study.sampling.samples_per_prompt, study.suites, study.definition) == (50, ("first_8",), "turner")


def test_published_rows_name_runs_of_the_study():
    runs = load_params(REPOSITORY / "params.yaml").runs_of("organisms")
    with (REPOSITORY / "published" / "organisms.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert all(row["where"].startswith("Section") and row["said"] for row in rows)
    named = {row["run"] for row in rows if row["run"].startswith("qwen25_")}
    assert {name for name in named if " " not in name} <= runs.keys()
    assert (rows[0]["misaligned_percent"], rows[0]["coherent_percent"]) == ("6", "67")
