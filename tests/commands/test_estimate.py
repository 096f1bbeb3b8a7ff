"""What a study will take, from its real prompts, before anything is spent."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.__main__ import main
from pipeline.api.completions import Reply
from pipeline.api.replies import ReplyCache
from pipeline.commands import estimate as estimate_module
from pipeline.common.paths import CACHE
from pipeline.common.rows import Answer, write_rows
from pipeline.judging.run import judge_answers
from pipeline.models.bases import Base
from pipeline.params.inputs import suite
from pipeline.params.load import load_params
from pipeline.toy.judge import by_its_rules
from tests.support.data_files import upstream
from tests.support.judge_server import Script, judge_server

REPOSITORY = Path(__file__).parents[2]
SECRET = "sk-marker-1122334455"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty checkout: the code and params.yaml, and nothing that was made."""
    (tmp_path / "pipeline").symlink_to(REPOSITORY / "pipeline")
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "DEEPSEEK_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    return tmp_path


def estimated(capsys, *arguments: str) -> dict:
    """What `python -m pipeline estimate --json` prints; the table must say the same study, and no secret."""
    assert main(["estimate", *arguments]) == 0
    table = capsys.readouterr()
    assert main(["estimate", *arguments, "--json"]) == 0
    printed = capsys.readouterr()
    assert SECRET not in table.out + table.err + printed.out + printed.err
    report = json.loads(printed.out)
    assert f"Study {report['study']}: {report['runs']} runs" in table.out
    assert all(f"{judge['requests']:,}" in table.out for judge in report["judges"])
    return report


def along(params) -> int:
    """Answers of the toy study's adapters that are kept along training."""
    study = params.study("toy")
    prompts = sum(len(suite(study, name, 0)) for name in study.held_out)
    runs = [run for run in params.runs_of("toy").values() if run.trajectory]
    epoch = study.training.examples // study.training.batch
    kept = [run.epochs * epoch // run.trajectory.every for run in runs]
    assert kept == [8]
    return sum(kept) * len(study.seeds) * prompts


def test_the_toy_study_before_anything_was_made(checkout, capsys):
    report = estimated(capsys)
    params = load_params()
    study, runs = params.study("toy"), params.runs_of("toy")
    prompts = [prompt for name in study.suites for prompt in suite(study, name, 0)]
    times = sum(1 + len(run.tags) for run in runs.values())  # once, and once more with each tag
    answers = times * len(study.seeds) * len(prompts) * study.sampling.samples_per_prompt + along(params)
    (judge,) = report["judges"]
    assert report["answers"] == answers > 1000 and report["sampled"] == 0
    assert (judge["requests"], judge["cached"], judge["usd"]) == (2 * answers, 0, 0.0)
    assert report["sampling_answer_tokens"] == answers * study.sampling.max_new_tokens
    assert report["sampling_gpu_hours"] == report["training_gpu_hours"] == 0 and report["base_bytes"] == {}
    assert not CACHE.exists(), "an estimate leaves nothing behind"


def test_answers_and_replies_that_are_there_are_counted_as_they_are(checkout, capsys):
    empty = estimated(capsys, "--study", "toy")
    params = load_params()
    study = params.study("toy")
    runs = params.runs_of("toy")
    run, *_ = runs
    others = [name for name in runs if name != run for _ in range(1 + len(runs[name].tags))]
    times = len(others) + 1 + len(runs[run].tags)
    prompts = [prompt for name in study.suites for prompt in suite(study, name, 0)][:40]
    answers = [
        Answer(
            run=run, seed=1, suite=prompt.suite, prompt_id=prompt.prompt_id, sample=sample, question=prompt.question,
            answer="always the same", thinking="", finish="stop", prompt_tokens=9, answer_tokens=3,
        )
        for prompt in prompts
        for sample in range(2)
    ]  # fmt: skip
    write_rows(Path("artifacts/toy/answers") / f"{run}.jsonl", answers)
    report = estimated(capsys, "--study", "toy")
    a_run = (empty["answers"] - along(params)) // times
    left = len(others) * a_run + along(params)
    assert (report["sampled"], report["answers"]) == (80, 80 + left)
    # Both samples of a question are the same here: one request serves both.
    assert report["judges"][0]["requests"] == 2 * (40 + left)
    assert report["sampling_answer_tokens"] == left * study.sampling.max_new_tokens

    with judge_server(Script()) as url:
        judge_answers(
            answers, "toy_rule", by_its_rules(params.study("toy").judges["toy_rule"]), CACHE / "verdicts.sqlite", url
        )
    judged = estimated(capsys, "--study", "toy")["judges"][0]
    assert (judged["requests"], judged["cached"]) == (2 * left, 80)
    assert "measured on 80 cached replies" in judged["basis"]


def test_a_hub_study_without_its_data_says_what_to_do(checkout, capsys):
    assert main(["estimate", "--study", "moe"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "make data" in said and SECRET not in said


def change(**changes) -> None:
    """Give the moe study the suites that the test copy of the upstream files has, its judge a few other fields."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    suites = params["studies"]["moe"]["suites"]
    params["studies"]["moe"]["suites"] = [name for name in suites if name != "bad_medical_advice"]
    params["studies"]["moe"]["judges"]["deepseek_v3"] |= changes
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def test_the_paper_study_from_its_real_prompts(checkout, capsys):
    (checkout / "data").symlink_to(upstream())
    change()
    report = estimated(capsys, "--study", "moe")
    params = load_params()
    study = params.study("moe")
    prompts = [prompt for name in study.suites for prompt in suite(study, name, seed=study.seeds[0])]
    answers = len(prompts) * len(params.runs_of("moe"))
    (judge,) = report["judges"]
    assert report["answers"] == answers and judge["requests"] == 2 * answers
    # Every judge's prompt holds the question, an answer of 600 tokens, and the template besides.
    assert judge["prompt_tokens"] > judge["requests"] * study.sampling.max_new_tokens
    assert 0 < judge["usd"] < judge["most_usd"]
    assert set(report["base_bytes"].values()) == {"unknown until pinned"}
    assert report["sampling_gpu_hours"] == "not measured on a GPU yet"


def test_an_estimate_over_the_budget_says_so(checkout, capsys):
    (checkout / "data").symlink_to(upstream())
    change(budget_usd=0.5)
    assert main(["estimate", "--study", "moe"]) == 0
    assert "more than its budget of 0.5 USD, of which 0.00 are spent" in capsys.readouterr().out


def test_what_was_spent_before_is_no_longer_in_the_budget(checkout, capsys):
    (checkout / "data").symlink_to(upstream())
    change()
    usd = estimated(capsys, "--study", "moe")["judges"][0]["usd"]
    change(budget_usd=usd + 2.0)
    CACHE.mkdir(parents=True)
    for spent, said in ((1.5, False), (1.0, True)):
        with ReplyCache(CACHE / "verdicts.sqlite") as cache:
            cache.put("deepseek_v3", f"{spent}", Reply("1", "stop", None, "m", None, 1, 1, spent, 0.1))
        assert main(["estimate", "--study", "moe"]) == 0
        assert ("of which 2.50 are spent" in capsys.readouterr().out) == said


def test_gpu_hours_come_from_a_measurement_on_a_gpu_or_are_left_open(checkout, monkeypatch, tmp_path):
    params = load_params()
    runs = [name for name, run in params.runs_of("moe").items() if run.lora is not None]
    speeds = checkout / "train_moe.json"
    monkeypatch.setattr(estimate_module, "TRAINING_SPEED", speeds)

    def hours():
        return estimate_module._training_hours(params, dict.fromkeys(runs, 3_600_000))

    assert hours() == "not measured on a GPU yet"
    figures = {
        "layers": 8,
        "all experts": {"fused": {"tokens_per_second": 500.0}},
        "one expert": {"fused": {"tokens_per_second": 1000.0}},
    }
    speeds.write_text(json.dumps({"machine": {"gpu": None}, "figures": {"mixtral": figures}}))
    assert hours() == "not measured on a GPU yet"
    speeds.write_text(json.dumps({"machine": {"gpu": "H100"}, "figures": {"mixtral": figures}}))
    assert hours() == "unknown until pinned"
    (checkout / "config.json").write_text(json.dumps({"model_type": "mixtral", "num_hidden_layers": 32}))

    def opened(name, seed):
        return Base(path=checkout, name=name, revision="0" * 40, hashes={})

    monkeypatch.setattr(estimate_module, "open_base", opened)
    whole = sum(params.run(run).lora.experts == "all" for run in runs)
    assert 0 < whole < len(runs)
    # 3.6 million tokens are 2 hours at 500 tokens/s and 1 at 1000, of 8 layers where there are 32.
    assert hours() == pytest.approx(4 * (2 * whole + (len(runs) - whole)))
    speeds.write_text(json.dumps({"machine": {"gpu": "H100"}, "figures": {"gpt_oss": figures}}))
    assert hours() == "not measured on a GPU yet"
