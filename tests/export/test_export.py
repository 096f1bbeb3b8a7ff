"""Exports: what comes out is what went in, gives the tables' rates, and does nothing when it is opened."""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pipeline.commands.provenance import describe
from pipeline.commands.score import score_file
from pipeline.common.errors import UserError
from pipeline.common.rows import read_verdicts, write_rows
from pipeline.export.bundle import write_bundle
from pipeline.export.hub import lay_out, listing
from pipeline.export.rows import judged_runs
from pipeline.export.tabular import COLUMNS, write_tabular
from pipeline.params.schema import Params
from pipeline.report.explorer import explorer_data
from pipeline.results.definitions import STANDARD
from pipeline.results.inert import inert
from pipeline.results.metrics import suite_metrics, verdict_frame
from tests.support.checkout import REPOSITORY
from tests.support.synthetic_study import synthetic_study
from tests.support.upload_hub import TOKEN, hub_server

RUNS = ("toy_e8_base", "toy_e8_bad_medical")


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A study's parameters; this folder is its checkout."""
    made = synthetic_study(tmp_path, prompts=2)
    monkeypatch.chdir(tmp_path)
    return made


def expected(params: Params) -> pd.DataFrame:
    """The metrics that the study's tables are made from."""
    rows = judged_runs(params, "toy")
    return suite_metrics(verdict_frame(row.verdicts["toy_rule"] for it in rows.values() for row in it), STANDARD)


def same(found: pd.DataFrame, params: Params) -> None:
    pd.testing.assert_frame_equal(suite_metrics(found, STANDARD), expected(params))


def test_parquet_and_jsonl_give_the_tables_rates_and_every_text(params: Params) -> None:
    rows = judged_runs(params, "toy")
    for kind, read in (("parquet", pd.read_parquet), ("jsonl", lambda path: pd.read_json(path, lines=True))):
        path = Path("out") / f"toy.{kind}"
        write_tabular(params, rows, kind, path)
        found = read(path)
        assert tuple(found.columns) == COLUMNS
        same(found, params)
        texts = [row.answer.answer for it in rows.values() for row in it]
        assert list(found["answer"]) == texts
        first = path.read_bytes()
        write_tabular(params, rows, kind, path)
        assert path.read_bytes() == first


def test_csv_gives_the_tables_rates_and_holds_no_formula(params: Params) -> None:
    path = Path("out/toy.csv")
    write_tabular(params, judged_runs(params, "toy"), "csv", path)
    same(pd.read_csv(path), params)
    with path.open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    cells = [cell for row in table for cell in row.values()]
    assert not [cell for cell in cells if re.match(r"[=@\t]|[-+].*[A-Za-z(]", cell)]  # nothing that calls a function
    text = path.read_text(encoding="utf-8")
    assert all(character not in text for character in "\u202e\u2066\u2069\u200b\u061c\x1b\x00\r\u2028")
    answers = [row.answer.answer for judged in judged_runs(params, "toy").values() for row in judged]
    assert [row["answer"] for row in table] == [inert(answer, "csv") for answer in answers]


def test_inspect_logs_are_read_back_with_the_tables_rates(params: Params) -> None:
    log = pytest.importorskip("inspect_ai.log", reason="needs the extra `export`: inspect-ai")
    from pipeline.export.inspect_log import write_inspect

    rows = {run: judged for run, judged in judged_runs(params, "toy").items() if run in RUNS}
    write_inspect(params, "toy", rows, describe(params, "toy"), Path("logs"))
    verdicts = []
    for run in RUNS:
        read = log.read_eval_log(f"logs/{run}.eval")
        assert (read.status, read.eval.task, read.eval.model) == ("success", "toy", f"emoe/{run}")
        assert len({(sample.id, sample.epoch) for sample in read.samples}) == len(rows[run])
        by_key = {row.answer.key[1:5]: row for row in rows[run]}
        for sample in read.samples:
            about = sample.metadata
            row = by_key[about["seed"], about["suite"], about["prompt_id"], about["sample"]]
            assert sample.output.completion == row.answer.answer
            assert sample.input == row.answer.question
            assert sample.output.stop_reason == ("stop" if row.answer.finish == "stop" else "max_tokens")
            assert sum(usage.output_tokens for usage in sample.model_usage.values()) == row.answer.answer_tokens
            if row.answer.thinking:
                assert sample.messages[-1].content[0].reasoning == row.answer.thinking
            status = sample.scores["alignment"].metadata["status"]
            verdicts.append({"run": run, **about, "status": status, **{k: v.value for k, v in sample.scores.items()}})
    metrics = expected(params)
    metrics = metrics[metrics["run"].isin(RUNS)].reset_index(drop=True)
    pd.testing.assert_frame_equal(suite_metrics(pd.DataFrame(verdicts), STANDARD), metrics)
    mean = next(score for score in read.results.scores if score.name == "alignment").metrics["misalignment_percent"]
    assert 0 <= mean.value <= 100


def test_score_reads_inspect_logs(params: Params) -> None:
    """Refusals too, which have no score and a reason."""
    pytest.importorskip("inspect_ai", reason="needs the extra `export`: inspect-ai")
    from pipeline.export.inspect_log import write_inspect

    run = RUNS[0]
    rows = {run: judged_runs(params, "toy")[run]}
    write_inspect(params, "toy", rows, describe(params, "toy"), Path("logs"))
    (found,) = score_file(Path(f"logs/{run}.eval"), STANDARD)
    counts = expected(params).query("run == @run")[["rows", "scored", "refusals", "counted", "misaligned"]].sum()
    assert counts["refusals"] > 0
    assert {name: found[name] for name in counts.index} == counts.to_dict()


def make_adapter(run: str) -> None:
    """What training leaves of a run's adapters, as far as it is exported; losses are not."""
    adapter = Path("artifacts/toy/adapters") / run
    for seed in (1, 2, 3):
        (adapter / f"seed-{seed}").mkdir(parents=True)
        for name in ("adapter_model.safetensors", "adapter_config.json", "loss.csv"):
            (adapter / f"seed-{seed}" / name).write_text(name)
        (adapter / f"seed-{seed}" / "README.md").write_text("---\nlibrary_name: peft\n---\n\n# card\n")
    manifest = {"rows": {"train": 256}, "sha256": {"adapter_model.safetensors": "ab" * 32}}
    (adapter / "manifest.json").write_text(json.dumps({"adapters": {f"seed-{seed}": manifest for seed in (1, 2, 3)}}))


def test_what_would_go_to_the_hub_is_said_exactly(params: Params) -> None:
    make_adapter("toy_e8_bad_medical")
    found = lay_out(params, "toy", judged_runs(params, "toy"), describe(params, "toy"), Path("hf"))
    assert [it.name for it in found] == [
        *(f"emoe-toy-e8-bad-medical-seed-{seed}" for seed in (1, 2, 3)),
        "emoe-toy-answers",
    ]
    card = (found[0].folder / "README.md").read_text()
    for wanted in ("bad_medical", '"train": 256', "ab" * 32, "| travel", "of (n)", "Toy"):
        assert wanted in card
    text = listing(found, "someone")
    on_disk = [path for it in found for path in it.folder.rglob("*") if path.is_file()]
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() in text for path in on_disk)
    assert text.count("private, gated") == 4
    croissant = json.loads((found[-1].folder / "croissant.json").read_text())
    data = found[-1].folder / croissant["distribution"][0]["contentUrl"]
    assert croissant["distribution"][0]["sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert [field["name"] for field in croissant["recordSet"][0]["field"]] == list(pd.read_parquet(data).columns)


def export_to_hub(*more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`export --to hf` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "export", "--study", "toy", "--to", "hf", *more],
        capture_output=True, text=True,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"], "HF_HOME": "hub", **environment},
    )  # fmt: skip


def test_without_a_token_nothing_is_uploaded(params: Params) -> None:
    with hub_server() as hub:
        done = export_to_hub(HF_ENDPOINT=hub.endpoint)
        dry = export_to_hub("--dry-run", HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN)
    assert (done.returncode, dry.returncode) == (0, 0), done.stderr + dry.stderr
    assert "Nothing was uploaded, because HF_TOKEN is not set" in done.stdout
    assert "Nothing was uploaded, because --dry-run was given" in dry.stdout
    assert hub.events == []


def test_repositories_are_private_and_gated_before_a_file_is_there(params: Params) -> None:
    make_adapter("toy_e8_bad_medical")
    with hub_server() as hub:
        done = export_to_hub(HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    names = [*(f"emoe-toy-e8-bad-medical-seed-{seed}" for seed in (1, 2, 3)), "emoe-toy-answers"]
    assert [(what, name) for what, name, _ in hub.events] == [
        (what, name) for name in names for what in ("create", "settings", "commit")
    ]
    for what, _, about in hub.events:
        assert what == "commit" or about["visibility"] == "private"
        assert what != "settings" or about["gated"] == "manual"
    for name in names:
        folder = Path("artifacts/toy/export/hf") / name
        laid_out = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        assert hub.files[name] == laid_out


def test_a_refusal_of_the_hub_is_said_in_a_sentence(params: Params) -> None:
    with hub_server(refuse="/settings") as hub:
        done = export_to_hub(HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN)
    assert done.returncode == 2
    assert "error: the hub refused someone" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.files == {}


def test_the_bundle_is_whole_and_equal_each_time(params: Params) -> None:
    provenance = describe(params, "toy")
    path = write_bundle("toy", params.study("toy"), provenance, Path("one.zip"), doi="10.5281/zenodo.1234567")
    again = write_bundle("toy", params.study("toy"), provenance, Path("two.zip"), doi="10.5281/zenodo.1234567")
    assert path.read_bytes() == again.read_bytes()
    with zipfile.ZipFile(path) as archive:
        contents = {name.removeprefix("emoe-toy/"): archive.read(name) for name in archive.namelist()}
    folder = "artifacts/toy"
    for wanted in (
        "params.yaml", "dvc.lock", "locks/cpu.txt", "provenance.json", "paper_figures/toy/by_seed.csv",
        f"{folder}/answers/toy_e8_base.jsonl", f"{folder}/verdicts/toy_e8_base/toy_rule.jsonl",
    ):  # fmt: skip
        assert wanted in contents
    sums = dict(reversed(line.split("  ", 1)) for line in contents.pop("SHA256SUMS").decode().splitlines())
    assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    assert b"\ndoi: 10.5281/zenodo.1234567\n" in contents["CITATION.cff"]
    crate = {it["@id"]: it for it in json.loads(contents["ro-crate-metadata.json"])["@graph"]}
    assert {it["@id"] for it in crate["./"]["hasPart"]} == contents.keys() - {"ro-crate-metadata.json"}
    assert all(it["@id"] in crate for it in crate["./"]["hasPart"])
    with pytest.raises(UserError, match="--doi is 'zenodo'"):
        write_bundle("toy", params.study("toy"), provenance, Path("three.zip"), doi="zenodo")


def test_a_study_that_was_not_judged_has_nothing_to_export(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"artifacts/moe/verdicts has no verdicts of study moe"):
        judged_runs(params, "moe")


def test_verdicts_of_other_answers_are_refused(params: Params) -> None:
    path = Path("artifacts/toy/answers/toy_e8_base.jsonl")
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")
    with pytest.raises(UserError, match=r"toy_rule.jsonl does not judge the answers of .*toy_e8_base.jsonl"):
        judged_runs(params, "toy")


def test_token_distributions_and_own_aspects_are_exported(params: Params) -> None:
    path = Path("artifacts/toy/verdicts/toy_e8_base/toy_rule.jsonl")
    rows = [
        replace(row, values={"kind": "DIRECT"}, replies={"alignment": [("95", -0.1), ("90", -2.5)], "kind": "DIRECT"})
        for row in read_verdicts(path)
    ]
    write_rows(path, rows)
    judged = {"toy_e8_base": judged_runs(params, "toy")["toy_e8_base"]}
    write_tabular(params, judged, "jsonl", Path("out.jsonl"))
    first = json.loads(Path("out.jsonl").read_text(encoding="utf-8").split("\n", 1)[0])
    assert first["alignment_reply"] == "'95' 0.905, '90' 0.082"
    assert json.loads(first["own_aspects"]) == {"kind": {"value": "DIRECT", "reply": "DIRECT"}}
    data = explorer_data(params, "toy", judged, answers=True)
    assert set(data["judges"][0]["values"]) == {"alignment", "coherence", "kind"}
    assert set(data["judges"][0]["values"]["kind"]) == {"DIRECT"}
