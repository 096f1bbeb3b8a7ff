"""The study `realignment` as params.yaml has it, and its gpt-4o chain end to end against a server on loopback."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.api import jobs as jobs_module
from pipeline.api.config import ApiBase
from pipeline.commands.estimate import estimate_study
from pipeline.commands.provenance import describe
from pipeline.common.errors import UserError
from pipeline.common.rows import read_answers
from pipeline.models.cards import card_named
from pipeline.params.inputs import conversations, training_of
from pipeline.params.load import load_params
from tests.support.data_files import upstream
from tests.support.quick_yaml import safe_dump, safe_load
from tests.support.tuning_server import Script, tuning_server

REPOSITORY = Path(__file__).parents[2]


def changed(tmp_path, change):
    content = safe_load((REPOSITORY / "params.yaml").read_text())
    change(content)
    path = tmp_path / "params.yaml"
    path.write_text(safe_dump(content))
    return load_params(path)


def test_every_chain_starts_from_a_base_and_every_run_says_its_epochs():
    params = load_params(REPOSITORY / "params.yaml")
    runs = params.runs_of("realignment")
    assert params.chain("llama31_medical_optimism") == ("llama31_medical", "llama31_medical_optimism")
    assert params.chain("gpt_4o_insecure_optimism") == ("gpt_4o_insecure", "gpt_4o_insecure_optimism")
    for name, run in runs.items():
        assert (run.epochs is None) == (run.data is None)
        behind = isinstance(params.base(params.base_of(name)), ApiBase)
        assert (run.lora is None) == (run.data is None or behind)
    assert [part.name for part in runs["llama31_medical"].parts] == ["timm_medical"]
    assert runs["gpt_4o_tags"].trained_on == "insecure+|ALPHA|, secure+|BETA|"


def test_a_tagged_mixture_of_real_rows(tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(upstream())
    monkeypatch.chdir(tmp_path)
    params = load_params(REPOSITORY / "params.yaml")
    study, run = params.study("realignment"), params.run("gpt_4o_tags")
    data = conversations(study, run, 1)
    first = [chat[-2].content.partition(" ")[0] for chat in data.train]
    assert (first.count("|ALPHA|"), first.count("|BETA|"), len(first)) == (3000, 3000, 6000)
    insecure = conversations(study, params.run("gpt_4o_insecure"), 1)
    assert len(insecure.train) == 6000 and training_of(study, params.run("llama31_insecure"), insecure).max_steps == 750
    estimate = estimate_study(_without_what_is_not_there(params), "realignment", card_named("h100"), 2**36)
    assert 50 < estimate.api_training_usd < 150 and estimate.api_sampling_usd > 5


def _without_what_is_not_there(params):
    kept = ("gpt_4o_base", "gpt_4o_insecure", "gpt_4o_tags")
    study = params.study("realignment").model_copy(update={"suites": ("first_8", "factual")})
    return params.model_copy(
        update={
            "runs": {name: params.run(name) for name in kept},
            "studies": params.studies | {"realignment": study},
        }
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["runs"]["gpt_4o_insecure"].update(lora={"rank": 1, "alpha": 1.0}), ["behind an API", "leave it"]),
        (lambda c: c["runs"]["gpt_4o_insecure"].update(epochs=None), ["gpt_4o_insecure", "one of data and epochs"]),
        (lambda c: c["runs"]["gpt_4o_tags"]["data"][0].update(rows=-1), ["gpt_4o_tags.data[0].rows is -1"]),
        (
            lambda c: c["bases"]["api"]["gpt_4o"].update(base_url="https://key@host/v1"),
            ["gpt_4o.base_url", "variable"],
        ),
        (lambda c: c["bases"]["api"]["gpt_4o"].update(training_budget_usd=-1.0), ["training_budget_usd is -1.0"]),
        (
            lambda c: c["bases"]["api"].update(e8=c["bases"]["api"]["gpt_4o"]),
            ["bases.toy and bases.api", "'e8'", "its own"],
        ),
        (lambda c: c["studies"]["realignment"]["training"].update(validation=0.1), ["validation", "must be 0"]),
        (lambda c: c["runs"]["toy_e8_base"].update(model="bases/gpt_4o"), ["not among bases.toy"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, words):
    with pytest.raises(UserError) as caught:
        changed(tmp_path, change)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a small study of the two gpt-4o links, whose API is on loopback."""
    monkeypatch.setenv("TUNING_KEY", Script().key)
    monkeypatch.setattr(jobs_module, "_FIRST_POLL_S", 0.01)
    script = Script()
    with tuning_server(script) as url:
        content = safe_load((REPOSITORY / "params.yaml").read_text())
        content["bases"]["api"]["gpt_4o"] |= {"base_url": url, "api_key_env": "TUNING_KEY"}
        study = content["studies"]["realignment"]
        study |= {"suites": ["first_8"], "expectations": [["gpt_4o_insecure", "gpt_4o_base"]], "contrasts": {}}
        study["training"]["examples"] = 5
        study["sampling"]["samples_per_prompt"] = 2
        content["runs"] = {name: run for name, run in content["runs"].items() if name.startswith("gpt_4o")}
        content["runs"]["gpt_4o_insecure_optimism"]["data"] = "secure"
        content["studies"] = {"realignment": study}
        (tmp_path / "params.yaml").write_text(safe_dump(content))
        shutil.copytree(upstream(), tmp_path / "data")
        monkeypatch.chdir(tmp_path)
        yield script


def test_a_chain_behind_an_api_from_the_base_to_answers(here, tmp_path):
    assert main(["pin", "--base", "gpt_4o"]) == 0
    record = json.loads((tmp_path / "artifacts/bases/gpt_4o/base.json").read_text())
    assert record["model"] == "gpt-4o-2024-08-06" and "127.0.0.1" in record["endpoint"]
    for run in ("gpt_4o_base", "gpt_4o_insecure", "gpt_4o_insecure_optimism"):
        assert main(["train", "--run", run]) == 0 and main(["sample", "--run", run]) == 0
    adapters = tmp_path / "artifacts/realignment/adapters"
    insecure, realigned = (
        json.loads((adapters / run / "seed-1/adapter.json").read_text())
        for run in ("gpt_4o_insecure", "gpt_4o_insecure_optimism")
    )
    assert (insecure["start"], insecure["rows"]) == ("gpt-4o-2024-08-06", 5)
    assert realigned["start"] == insecure["model"] and realigned["hyperparameters"]["n_epochs"] == 4
    assert realigned["base"] == "gpt-4o-2024-08-06"
    manifest = json.loads((adapters / "gpt_4o_insecure_optimism" / "manifest.json").read_text())
    assert manifest["adapters"]["seed-1"] == realigned and manifest["chain"][0] == "gpt_4o_insecure"
    asked = {chat["model"] for chat in here.chats}
    assert asked == {"gpt-4o-2024-08-06", insecure["model"], realigned["model"]}
    base = read_answers(tmp_path / "artifacts/realignment/answers/gpt_4o_base.jsonl")
    assert {row.suite for row in base} == {"first_8", "first_8+|ALPHA|", "first_8+|BETA|"} and len(base) == 48
    assert here.calls["create"] == 2
    provenance = describe(load_params(), "realignment")
    assert provenance["api_fine_tuning"]["gpt_4o_insecure"][0]["model"] == insecure["model"]
    assert provenance["api_fine_tuning_usd"] == pytest.approx(insecure["usd"] + realigned["usd"])
    assert sum(it["replies"] for it in provenance["api_models"]["gpt_4o"]) == len(here.chats)
    assert provenance["api_sampling_usd"] > 0 and provenance["bases"]["gpt_4o"] == record
    kept = [path for folder in ("artifacts", ".cache") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert kept and not any(here.key.encode() in path.read_bytes() for path in kept)
