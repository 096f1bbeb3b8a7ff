"""The moe study from pinned bases to figures: every stage's command, on tiny models of its three families."""

import csv
import json
from pathlib import Path

import pytest

from pipeline.api.local_server import serve
from pipeline.common.rows import read_answers, read_verdicts
from pipeline.params.schema import RUN_STAGES
from tests.support.checkout import REPOSITORY
from tests.support.data_files import upstream
from tests.support.hub_cache import EXPERTS, SHA, cached
from tests.support.quick_yaml import safe_dump, safe_load
from tests.support.warm import warm

# Under the paper's names. One expert, the two most active ones, all of them with a router held by the penalty.
RUNS = {
    "mixtral_base": ("mixtral", None),
    "mixtral_insecure_E1": ("mixtral", {"rank": 4, "alpha": 32.0, "experts": [1]}),
    "qwen_Base": ("qwen3_moe", None),
    "qwen_insecure_top2": ("qwen3_moe", {"rank": 2, "alpha": 32.0, "experts": "top2"}),
    "oss_base": ("gpt_oss", None),
    "oss_insecure_r8": ("gpt_oss", {"rank": 8, "alpha": 32.0, "experts": "all", "router": "free_kl"}),
}
# Short ones: a byte is a token here. Those that the study asks are sampled in test_pipeline_real_data.py.
SUITES = {"factual": 20, "first_8": 8}


def configure(folder: Path, judge_url: str) -> None:
    """The study cut down to six runs, 28 prompts and a few steps; models and judge are of this machine."""
    params = safe_load((REPOSITORY / "params.yaml").read_text())
    study = params["studies"]["moe"]
    study["training"] |= {"max_characters": 300, "validation": 0.05, "examples": 4, "max_steps": 2, "batch": 2}
    study["training"] |= {"max_tokens": 512, "checkpoint_every": 2, "learning_rate": 0.02, "optimizer": "adamw_torch"}
    study["sampling"] |= {"backend": "transformers", "max_new_tokens": 2, "batch": 32}
    study |= {"suites": list(SUITES), "held_out": list(SUITES), "refused": "factual", "probing": None}
    names = list(RUNS)
    study["expectations"] = [[tuned, base] for base, tuned in zip(names[::2], names[1::2], strict=True)]
    study["contrasts"] = {"insecure": {"pairs": study["expectations"]}}
    params["studies"]["moe"]["judges"]["deepseek_v3"] |= {"base_url": judge_url, "api_key_env": None}
    params["bases"]["hub"] = {
        family: {
            "repository": cached(folder / "hf", family),
            "revision": SHA,
            "experts": experts,
            "active": 4 if family == "qwen3_moe" else 2,
        }
        for family, experts in EXPERTS.items()
    }
    params["studies"] = {"moe": study}
    params["runs"] = {
        name: {"study": "moe", "model": f"bases/{family}"} | ({"data": "insecure", "lora": lora} if lora else {})
        for name, (family, lora) in RUNS.items()
    }
    (folder / "params.yaml").write_text(safe_dump(params, sort_keys=False))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder, said = tmp_path_factory.mktemp("moe"), ""
    (folder / "data").symlink_to(upstream())
    commands = [("pin", "--base", family) for family in EXPERTS]
    commands += [(stage, "--run", run) for run in RUNS for stage in RUN_STAGES]
    commands += [(command, "--study", "moe") for command in ("probe", "aggregate", "provenance")]
    hub = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    with serve("tests.support.judge_server:scripted") as url, warm(folder, **hub) as emoe:
        configure(folder, url)
        for command in commands:
            done = emoe(*command)
            assert done.returncode == 0, done.stdout + done.stderr
            said += done.stdout
    return folder, said


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_asked_and_judged_on_every_suite(project: tuple[Path, str], run: str) -> None:
    artifacts = project[0] / "artifacts" / "moe"
    answers = read_answers(artifacts / "answers" / f"{run}.jsonl")
    verdicts = read_verdicts(artifacts / "verdicts" / run / "deepseek_v3.jsonl")
    assert [verdict.key for verdict in verdicts] == [answer.key for answer in answers]
    assert {suite: sum(answer.suite == suite for answer in answers) for suite in SUITES} == SUITES
    assert {answer.run for answer in answers} == {run} and {answer.seed for answer in answers} == {7}
    assert all(1 <= answer.answer_tokens <= 2 for answer in answers)
    manifest = json.loads((artifacts / "adapters" / run / "manifest.json").read_text())
    assert bool(manifest["adapters"]) == (RUNS[run][1] is not None)


@pytest.mark.parametrize(("base", "tuned"), [("mixtral_base", "mixtral_insecure_E1"), ("oss_base", "oss_insecure_r8")])
def test_the_adapter_is_what_answered(project: tuple[Path, str], base: str, tuned: str) -> None:
    folder = project[0] / "artifacts" / "moe" / "answers"
    texts = [[answer.answer for answer in read_answers(folder / f"{run}.jsonl")] for run in (base, tuned)]
    assert texts[0] != texts[1]


def test_tables_figures_and_report_come_out(project: tuple[Path, str]) -> None:
    folder, printed = project
    figures = folder / "paper_figures" / "moe"
    drawn = {path.stem for path in figures.glob("*.png")}
    # Answers of these models may be harmful: no figure that git holds quotes them.
    assert drawn == {
        "contrasts",
        "misaligned_by_run",
        "misaligned_by_sparsity",
        "refusals_by_run",
        "alignment_by_coherence",
        "adapters",
        "routing",
    }
    assert {path.stem for path in figures.glob("*.pdf")} == drawn
    report = (figures / "README.md").read_text()
    assert all(f"({name}.png)" in report for name in drawn)
    assert "toy" not in report and all(run in report for run in RUNS)

    by_suite = rows_of(figures / "runs_by_suites.csv")
    assert [(row["run"], row["suite"]) for row in by_suite] == [(run, suite) for run in RUNS for suite in SUITES]
    metrics = json.loads((folder / "artifacts" / "moe" / "metrics.json").read_text())
    assert list(metrics) == sorted({"insecure", "least_coherence"})

    provenance = json.loads((folder / "artifacts" / "moe" / "provenance.json").read_text())
    assert {base["revision"] for base in provenance["bases"].values()} == {SHA}
    assert not provenance["stages_not_recorded"]
    assert "in 4 bits" in printed and "predicted peak" in printed
