"""A whole rehearsal: narrow in every run of the tests; at true width, through DVC, killed and resumed, every night."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands import rehearse as command
from pipeline.common.files import read_json, read_jsonl
from pipeline.params.load import load_params
from pipeline.rehearsal import scratch
from pipeline.rehearsal.scratch import Scratch
from pipeline.rehearsal.study import representatives
from tests.support.data_files import upstream

REPOSITORY = Path(__file__).parents[2]
RUNS = ("mixtral_insecure_whole_r32", "qwen_insecure_top2", "oss_insecure_r8")
ASKED_BY = {"pin": "--base", "probe": "--study", "aggregate": "--study"}

# Commands one after another, each in a process of its own, without the 10 seconds of imports that each would need.
SERVER = """
import io, json, os, sys
from pipeline.common.numerics import pin_kernels
pin_kernels()
from pipeline.rehearsal.stage import compute_products_in_32_bits
compute_products_in_32_bits()
import bitsandbytes, matplotlib.pyplot, pandas, pipeline.models.loading, pipeline.training.sft
import pipeline.sampling.huggingface, pipeline.sampling.generate, pipeline.rehearsal.fidelity
from pipeline.__main__ import main
for line in sys.stdin:
    log, command = json.loads(line)
    if not (child := os.fork()):
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1), os.dup2(out, 2)
        if command[0] == "fidelity":
            print(json.dumps(pipeline.rehearsal.fidelity.fidelity(command[1])), flush=True)
            os._exit(0)
        status = main(command)
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Warm(Scratch):
    """A scratch checkout whose commands are processes that have imported everything; without DVC, and never killed."""

    server: "subprocess.Popen[str] | None" = None

    def imports(self, *modules: str) -> int:
        return 0

    def command(self, *arguments: str, module: str = "pipeline") -> str:
        said = self.log.stat().st_size
        assert self._do([*(["fidelity"] if module.endswith("fidelity") else []), *arguments]) in scratch.VERDICTS
        return self.log.read_bytes()[said:].decode()

    def _run(self, name: str, *, until: Any = None, steps: Any = None) -> tuple[bool, int, int]:
        if until is not None:
            return False, 0, 0
        stage, _, of = name.partition("@")
        assert self._do([stage, ASKED_BY.get(stage, "--run"), of]) == 0, self.log.read_text()[-3000:]
        return False, 0, 0

    def _do(self, arguments: list[str]) -> int:
        if Warm.server is None:
            Warm.server = subprocess.Popen(
                [sys.executable, "-c", SERVER], cwd=self.folder, env=self.environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        assert Warm.server.stdin is not None and Warm.server.stdout is not None
        print(json.dumps([str(self.log), arguments]), file=Warm.server.stdin, flush=True)
        return int(Warm.server.stdout.readline())


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(scratch, "Scratch", Warm)
    yield
    if Warm.server is not None:
        Warm.server.communicate()
        Warm.server = None


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this checkout with the upstream data, and this process in it."""
    folder = tmp_path / "checkout"
    (tmp_path / "data").symlink_to(upstream())
    scratch.copy_checkout(REPOSITORY, folder)
    (folder / "data").unlink()
    (folder / "data").symlink_to(upstream())
    scratch.commit(folder)
    monkeypatch.setattr(command, "ROOT", folder)
    monkeypatch.chdir(folder)
    return folder


def assert_sampled_is_trained(fidelity: dict[str, float]) -> None:
    """To bf16 rounding: gpt-oss's sampling rounds its attention elsewhere than its training does."""
    assert fidelity["sampled_rounding"] < 1.5 * fidelity["rounding"] < 0.05
    assert fidelity["sampled"] < 1.5 * fidelity["rounding"]
    assert fidelity["effect"] > 0


@pytest.mark.usefixtures("warm")
def test_every_family_goes_through_every_stage(checkout: Path, tmp_path: Path) -> None:
    params = load_params()
    runs = representatives(params, "moe", names=RUNS)
    report = command.rehearse(params, "moe", runs, "tiny", 1, tmp_path / "scratch")
    assert set(report["runs"]) == set(runs) and set(report["bases"]) == {"mixtral", "qwen3", "gpt_oss"}
    assert "0 PASS, 0 DIFFERS" in report["verified"] and "NOT RUN" in report["verified"]
    for run in RUNS:
        found = report["runs"][run]
        assert found["train"]["predicted"] and found["sample"]["predicted"]
        assert_sampled_is_trained(found["fidelity"])
    artifacts = tmp_path / "scratch" / "artifacts" / "moe"
    routed = json.loads((artifacts / "adapters/qwen_insecure_top2/seed-7/routing.json").read_text())
    assert routed
    # One run of each base is probed: parts, scales, directions and the search.
    assert read_json(artifacts / "probes" / "manifest.json")["runs"] == list(RUNS)
    for run in RUNS:
        kinds = {row["kind"] for row in read_jsonl(artifacts / "probes" / run / "interventions.jsonl")}
        assert kinds >= {"whole", "base", "without part", "only part", "scale", "ablate", "add", "search", "found"}
    said = tmp_path / "scratch" / "paper_figures" / "moe" / "containment"
    assert (said / "remedies.csv").exists() and "nan" not in (said / "README.md").read_text()
    # What DVC takes for there: the stage that makes it was run.
    assert set(read_json(artifacts / "metrics.json")) and (artifacts / "verify.md").exists()


@pytest.mark.skipif(os.environ.get("EMOE_NIGHTLY") != "1", reason="an hour of two cores and 14 GB: EMOE_NIGHTLY=1")
def test_true_width_through_dvc_killed_and_resumed(checkout: Path, tmp_path: Path) -> None:
    done = [sys.executable, "-m", "pipeline", "rehearse", "--study", "moe", "--layers", "1", "--runs", *RUNS]
    subprocess.run([*done, "--result", str(tmp_path / "report.json")], cwd=checkout, check=True)
    report = read_json(tmp_path / "report.json")
    assert report["width"] == "true" and all(report["runs"][run]["train"]["resumed"] for run in RUNS)
    for run in RUNS:
        assert_sampled_is_trained(report["runs"][run]["fidelity"])
