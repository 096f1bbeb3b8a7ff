"""What a study will take, from its real prompts, before anything is spent."""

import contextlib
import json
import re
import shutil
from pathlib import Path
from unittest import mock

import pytest
from huggingface_hub import constants

from pipeline.__main__ import main
from pipeline.api.completions import Reply
from pipeline.api.replies import ReplyCache
from pipeline.commands import estimate as command
from pipeline.commands.estimate import estimate_study
from pipeline.common.paths import CACHE
from pipeline.common.rows import Answer, write_rows
from pipeline.doctor import rehearsed as rehearsed_module
from pipeline.judging.run import judge_answers
from pipeline.models.known import KNOWN
from pipeline.params.inputs import suite
from pipeline.params.load import load_params
from pipeline.toy.judge import by_its_rules
from tests.support.data_files import upstream
from tests.support.judge_server import Script, judge_server
from tests.support.quick_yaml import safe_dump, safe_load

REPOSITORY = Path(__file__).parents[2]
SECRET = "sk-marker-1122334455"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty checkout: the code and params.yaml, and nothing that was made."""
    (tmp_path / "pipeline").symlink_to(REPOSITORY / "pipeline")
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("OPENAI_API_KEY", "TOGETHER_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    return tmp_path


def estimated(capsys, *arguments: str) -> dict:
    """What `python -m pipeline estimate --json` prints; the table must say the same study, and no secret."""
    reckoned = []

    def once(*given):
        reckoned.extend([] if reckoned else [estimate_study(*given)])
        return reckoned[0]

    with mock.patch.object(command, "estimate_study", once):  # seconds, and both print the same
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


def test_seeds_and_extra_suites_multiply_what_a_study_takes(checkout, capsys):
    one = estimated(capsys, "--study", "moe", "--gpu", "h100", "--runs", "oss_base")
    two = estimated(capsys, "--study", "moe", "--gpu", "h100", "--runs", "oss_base", "--seeds", "7", "17")
    assert two["seeds"] == 2 and two["answers"] == 2 * one["answers"] == 2 * 1257
    assert main(["estimate", "--study", "moe", "--gpu", "h100", "--runs", "oss_base"]) == 0
    usd = one["judges"][0]["usd"]
    assert f"seeds     1,257 answers a seed, about {usd:.2f} USD, " in capsys.readouterr().out
    text = (checkout / "params.yaml").read_text()
    (checkout / "params.yaml").write_text(text.replace("{asked: false", "{asked: true"))
    wider = estimated(capsys, "--study", "moe", "--gpu", "h100", "--runs", "oss_base")
    assert wider["answers"] == 1257 + 40 + 16 + 48 + 108
    assert main(["estimate", "--study", "moe", "--seeds", "7", "7"]) == 2
    assert "--seeds is 7 7" in capsys.readouterr().err


def test_the_toy_study_before_anything_was_made(checkout, capsys):
    report = estimated(capsys)
    params = load_params()
    study, runs = params.study("toy"), params.runs_of("toy")
    prompts = [prompt for name in study.suites for prompt in suite(study, name, 0)]
    # Once a seed, and once more with each tag.
    times = sum((1 + len(run.tags)) * len(params.seeds_of(name)) for name, run in runs.items())
    answers = times * len(prompts) * study.sampling.samples_per_prompt + along(params)
    (judge,) = report["judges"]
    assert report["answers"] == answers > 1000 and report["sampled"] == 0
    asked = answers + report["probed"]
    assert (judge["requests"], judge["cached"], judge["usd"]) == (2 * asked, 0, 0.0)
    assert report["sampling_answer_tokens"] == asked * study.sampling.max_new_tokens
    assert report["card"] is None and report["bases"] == [] and report["disk_bytes"] == {}
    assert not CACHE.exists(), "an estimate leaves nothing behind"


def test_answers_and_replies_that_are_there_are_counted_as_they_are(checkout, capsys):
    empty = estimated(capsys, "--study", "toy")
    params = load_params()
    study = params.study("toy")
    runs = params.runs_of("toy")
    run, *_ = runs
    times_of = {name: (1 + len(entry.tags)) * len(params.seeds_of(name)) for name, entry in runs.items()}
    times, others = sum(times_of.values()), sum(times_of.values()) - times_of[run]
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
    a_seed = (empty["answers"] - along(params)) // times
    left, probed = others * a_seed + along(params), empty["probed"]
    assert (report["sampled"], report["answers"]) == (80, 80 + left)
    # Both samples of a question are the same here: one request serves both.
    assert report["judges"][0]["requests"] == 2 * (40 + left + probed)
    assert report["sampling_answer_tokens"] == (left + probed) * study.sampling.max_new_tokens

    with judge_server(Script()) as url:
        judge_answers(
            answers,
            "toy_rule",
            by_its_rules(params.study("toy").judges["toy_rule"]),
            CACHE / "verdicts.sqlite",
            lambda: contextlib.nullcontext(url),
        )
    judged = estimated(capsys, "--study", "toy")["judges"][0]
    assert (judged["requests"], judged["cached"]) == (2 * (left + probed), 80)
    assert "measured on 80 cached replies" in judged["basis"]


def test_a_hub_study_is_estimated_before_anything_is_fetched(checkout, capsys):
    report = estimated(capsys, "--study", "moe", "--gpu", "h100")
    params = load_params()
    assert report["answers"] == 1257 * len(params.runs_of("moe"))
    guessed = "suite bad_medical_advice (its bytes from 250 of its rows)"
    assert set(report["assumed"]) >= {"suite strong_reject", guessed, "training set insecure"}
    assert report["judges"][0]["usd"] > 0 and "its prompts are not here yet" in report["judges"][0]["basis"]
    assert not CACHE.exists(), "an estimate leaves nothing behind"
    for study in ("organisms", "realignment"):
        found = estimated(capsys, "--study", study, "--gpu", "a100")
        assert found["bases"] and not found["unknown"]


def test_bases_of_unknown_size_are_said_to_be_in_no_figure(checkout, capsys, monkeypatch):
    monkeypatch.delitem(KNOWN, "allenai/OLMoE-1B-7B-0924-Instruct", raising=False)
    assert main(["estimate", "--study", "sparsity", "--gpu", "h100", "--runs", "sp_oss_base", "sp_olmoe_base"]) == 0
    assert (
        "without   olmoe: their sizes are known once they are fetched (dvc repro pin@olmoe)" in capsys.readouterr().out
    )


def test_what_is_assumed_is_close_to_what_is_there(checkout, capsys):
    before = estimated(capsys, "--study", "moe", "--gpu", "h100")
    (checkout / "data").symlink_to(upstream())
    after = estimated(capsys, "--study", "moe", "--gpu", "h100")
    assert len(after["assumed"]) < len(before["assumed"]) and after["answers"] == before["answers"]
    assert after["sampling_prompt_tokens"] == pytest.approx(before["sampling_prompt_tokens"], rel=0.04)
    assert after["judges"][0]["prompt_tokens"] == pytest.approx(before["judges"][0]["prompt_tokens"], rel=0.1)


def change(**changes) -> None:
    """Give the moe study the suites that the test copy of the upstream files has, its judge a few other fields."""
    params = safe_load(Path("params.yaml").read_text())
    suites = params["studies"]["moe"]["suites"]
    params["studies"]["moe"]["probing"] = None
    params["studies"]["moe"]["suites"] = [name for name in suites if name != "bad_medical_advice"]
    params["studies"]["moe"]["judges"]["deepseek_v3"] |= changes
    Path("params.yaml").write_text(safe_dump(params, sort_keys=False))


def test_the_paper_study_from_its_real_prompts(checkout, capsys):
    (checkout / "data").symlink_to(upstream())
    change()
    report = estimated(capsys, "--study", "moe")
    params = load_params()
    study = params.study("moe")
    prompts = [prompt for name in study.suites for prompt in suite(study, name, seed=study.seeds[0])]
    answers = len(prompts) * len(params.runs_of("moe"))
    (judge,) = report["judges"]
    assert report["answers"] == answers and judge["requests"] == 2 * (answers + report["probed"])
    # Every judge's prompt holds the question, an answer of 600 tokens, and the template besides.
    assert judge["prompt_tokens"] > judge["requests"] * study.sampling.max_new_tokens
    assert 0 < judge["usd"] < judge["most_usd"]
    assert {base["base"] for base in report["bases"]} == {"mixtral", "qwen3", "gpt_oss"}


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


def hours(report: dict, end: int) -> float:
    return sum(base["training_hours"][end] + base["sampling_hours"][end] for base in report["bases"])


def test_a_faster_card_takes_less_and_every_range_is_one(checkout, capsys):
    reports = [estimated(capsys, "--study", "moe", "--gpu", card) for card in ("3090", "a6000", "a100", "h100")]
    for end in (0, 1):
        found = [hours(report, end) for report in reports]
        assert found == sorted(found, reverse=True)
    for report, gib in zip(reports, (24, 48, 80, 80), strict=True):
        sizes = [base["checkpoint_bytes"] for base in report["bases"]]
        assert sizes == sorted(sizes), "in the order of reproduce"
        for base in report["bases"]:
            assert 0 < base["training_hours"][0] < base["training_hours"][1]
            assert not base["refused"] and base["gpu_bytes"] <= gib * 2**30
    # Arithmetic on measured row lengths said 14 h of training and 2 h of sampling, and 77 h and 17 h (issue 22).
    assert hours(reports[3], 0) < 16 < hours(reports[3], 1)
    assert hours(reports[1], 0) < 94 < hours(reports[1], 1)


def test_what_a_card_cannot_do_is_named_beside_what_it_can(checkout, capsys):
    report = estimated(capsys, "--study", "organisms", "--gpu", "a6000")
    refused = {base["base"]: base["refused"] for base in report["bases"] if base["refused"]}
    assert refused.keys() == {"qwen25_14b", "qwen25_32b", "gemma3_27b"}
    assert all(run.endswith("_full") for run in refused["qwen25_14b"])


def test_answers_along_training_take_gpu_hours_and_an_engine_starts_for_each_adapter(checkout, capsys):
    phase = ("--study", "organisms", "--gpu", "h100", "--runs", "qwen25_14b_medical_phase")
    report = estimated(capsys, *phase)
    (base,) = report["bases"]
    # 794 steps, every tenth kept: 79 adapters beside the run's own, each asked 8 questions 50 times for 600 tokens.
    assert report["answers"] == 80 * 400
    a_pass = 28e9 / 3.35e12
    assert base["sampling_hours"][0] > 80 * 600 / 3 * a_pass / 3600
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(re.sub(r"backend: \w+", "backend: vllm", text))
    (served,) = estimated(capsys, *phase)["bases"]
    # A minute or more for each: a base of 30 GB merged, written and read.
    assert served["sampling_hours"][0] > base["sampling_hours"][0] + 80 / 60
    assert served["sampling_limit"] == "loading"


def test_a_subset_costs_less_and_only_its_base(checkout, capsys):
    whole = estimated(capsys, "--study", "moe", "--gpu", "h100")
    part = estimated(capsys, "--study", "moe", "--gpu", "h100", "--runs", "qwen_*")
    assert [base["base"] for base in part["bases"]] == ["qwen3"] and part["runs"] < whole["runs"]
    assert hours(part, 1) < hours(whole, 1) and part["disk_bytes"]["weights of bases"] < 62e9
    assert main(["estimate", "--study", "moe", "--runs", "no_such"]) == 2
    assert "no run of study moe fits no_such" in capsys.readouterr().err


def test_an_unknown_card_is_one_sentence(checkout, capsys):
    assert main(["estimate", "--study", "moe", "--gpu", "voodoo2"]) == 2
    assert "GPU 'voodoo2' is unknown; there are" in capsys.readouterr().err


def test_a_rehearsal_on_the_same_card_stands_beside_the_arithmetic(checkout, capsys, monkeypatch):
    monkeypatch.setattr(rehearsed_module, "RESULTS", checkout)
    run = {"base": "gpt_oss", "train": {"step_seconds": 1.5}}
    machine = {"gpu": "NVIDIA H100 80GB HBM3"}
    report = {
        "bases": {"gpt_oss": {"fields": {"num_hidden_layers": 2}}},
        "width": "true",
        "machine": machine,
        "runs": {"oss_insecure_r8": run},
    }
    narrow = report | {"width": "tiny", "runs": {"oss_insecure_r8": run | {"train": {"step_seconds": 0.1}}}}
    train = {"step_seconds": 90.0, "predicted": 12, "predicted_slack": 2, "own": 6}
    on_cpu = report | {"machine": {"gpu": None}, "imports_bytes": {"train": 1}}
    on_cpu |= {"runs": {"oss_insecure_r8": run | {"train": train}}}
    (checkout / "rehearsal-moe-cpu.json").write_text(json.dumps(on_cpu))
    (checkout / "rehearsal-moe-nvidia-h100-80gb-hbm3-tiny.json").write_text(json.dumps(narrow))
    (checkout / "rehearsal-moe-nvidia-h100-80gb-hbm3.json").write_text(json.dumps(report))
    found = {base["base"]: base for base in estimated(capsys, "--study", "moe", "--gpu", "h100")["bases"]}
    # 12 times as many layers, 1200 steps, four trained runs.
    assert found["gpt_oss"]["rehearsed"] == pytest.approx(1.5 * 12 * 1200 * 4 / 3600)
    assert found["mixtral"]["rehearsed"] is None
    # Without what is CUDA's of the plan, and what is the imports' of the process.
    assert (found["gpt_oss"]["memory_of_plan"], found["mixtral"]["memory_of_plan"]) == (0.5, None)
