"""Before a hub study starts: every run is planned, and what cannot be done is said in one table, before anything is."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.__main__ import main
from pipeline.commands import reproduce
from pipeline.common.errors import UserError
from pipeline.common.files import write_json
from pipeline.common.machine import Gpu, Gpus
from pipeline.doctor import disk, gate
from pipeline.doctor.plans import RunPlan, plan_runs
from pipeline.models.experts.cache import PackedCache
from pipeline.models.known import KNOWN
from pipeline.params.load import load_params
from tests.support.full_size import FULL_SIZE

GIB = 2**30
REPOSITORY = Path(__file__).parents[2]
STUDIES = ("moe", "organisms", "realignment", "sparsity")
# What is left of a card's memory to those who compute, in GiB, and the host's beside each.
CARDS, HOST = {"24 GB": 23.5, "48 GB": 47.5, "80 GB": 79.1}, 64


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The repository's own, in a folder where nothing was made, with both keys and a machine that can do it all."""
    loaded = load_params(REPOSITORY / "params.yaml")
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "TOGETHER_API_KEY"):
        monkeypatch.setenv(name, "sk-marker")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "cc").touch(mode=0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    monkeypatch.setattr(gate.sysconfig, "get_path", lambda _: str(tmp_path))
    having(monkeypatch)
    return loaded


def having(
    monkeypatch: pytest.MonkeyPatch, gib: float | None = 80, host: float = 64, capability: float = 9.0,
    free: float = 2000, cpu_lock: bool = False,
) -> None:  # fmt: skip
    """A machine of these sizes, in GiB."""
    found = () if gib is None else (Gpu("a card", capability, round(gib * GIB), "580.1"),)
    monkeypatch.setattr(gate, "gpus", lambda: Gpus(found, "" if found else "nvidia-smi is not here"))
    monkeypatch.setattr(gate, "memory_bytes", lambda: round(host * GIB))
    monkeypatch.setattr(gate, "torch_is_cpu_build", lambda: cpu_lock)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: type("Usage", (), {"free": round(free * 1e9)}))


def test_the_sizes_that_are_planned_with_are_those_of_the_tests(params: Any) -> None:
    for base, hub in params.bases.hub.items():
        known, full = KNOWN[hub.repository], vars(FULL_SIZE[base])
        assert {name: known[name] for name in full} == full


def plans(params: Any, study: str, gib: float) -> list[RunPlan]:
    return list(plan_runs(params, study, gpu_bytes=round(gib * GIB), host_bytes=HOST * GIB))


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("gib", CARDS.values())
def test_every_run_is_planned_on_one_card(params: Any, study: str, gib: float) -> None:
    planned = plans(params, study, gib)
    assert {plan.run for plan in planned} == {run for run in params.runs_of(study) if params.base_of(run) != "gpt_4o"}
    # Which runs of organisms are refused is the documents' (below); of the other studies none is.
    assert study == "organisms" or not any(plan.trouble for plan in planned)
    assert all(plan.peak <= gib * GIB and plan.host <= HOST * GIB for plan in planned if not plan.trouble)


def test_the_documents_say_what_one_card_cannot_train(params: Any) -> None:
    cards = {card: {plan.run: plan.trouble for plan in plans(params, "organisms", gib)} for card, gib in CARDS.items()}
    refused = {card: [run for run, trouble in found.items() if trouble] for card, found in cards.items()}
    rows: dict[tuple[str, ...], list[float]] = {}
    for run in refused["24 GB"]:
        what = "every parameter" if params.run(run).lora is None else "an adapter"
        needs = re.search(r"its smallest plan needs (\S+) GiB", cards["24 GB"][run])
        assert needs is not None and params.run(run).data is not None, cards["24 GB"][run]
        here = ["refused" if run in refused[card] else "planned" for card in CARDS]
        rows.setdefault((f"`{params.base_of(run)}`, {what}", *here), []).append(float(needs[1]))
    lines = [[what, len(needs), f"{max(needs):.0f} GiB", *here] for (what, *here), needs in rows.items()]
    lines += [[f"refused of {len(cards['24 GB'])} runs", "", "", *map(len, refused.values())]]
    table = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    document = REPOSITORY / "docs/artifact-appendix.md"
    assert table in document.read_text(encoding="utf-8"), f"{document} should have:\n{table}"


def test_a_machine_that_can_do_it_all_leaves_nothing_out(params: Any) -> None:
    assert gate.check_study(params, "moe") == {}
    assert gate.check_study(params, "toy") == {}


def test_a_gated_base_leaves_its_runs_out_before_any_other_base_is_worked_on(params: Any, monkeypatch: Any) -> None:
    """Each base is fetched when it is its turn: the last one's licence would show after days."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("pipeline.doctor.models.http_status", lambda url, _: 403 if "mistralai" in url else None)
    blocked = gate.check_study(params, "moe")
    assert set(blocked) == {run for run in params.runs_of("moe") if params.base_of(run) == "mixtral"}
    assert len(set(blocked.values())) == 1 and "accept its licence at https://huggingface.co/mistralai" in str(blocked)


def test_a_missing_judge_key_refuses_the_study_before_anything_is_trained(params: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("TOGETHER_API_KEY")
    with pytest.raises(UserError, match=r"nothing was started[\s\S]*judge deepseek_v3: .*TOGETHER_API_KEY"):
        gate.check_study(params, "moe")


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"cpu_lock": True}, "make setup LOCK=gpu"),
        ({"gib": None}, "no GPU of compute capability 8 or more was found (nvidia-smi is not here)"),
        ({"capability": 7.5}, "no GPU of compute capability 8 or more was found (older ones only)"),
        ({"free": 100}, "GB are still to be written"),
    ],
)
def test_what_concerns_all_runs_is_said_once(
    params: Any, monkeypatch: Any, machine: dict[str, Any], words: str
) -> None:
    having(monkeypatch, **machine)
    with pytest.raises(UserError) as raised:
        gate.check_study(params, "moe")
    assert words in str(raised.value) and str(raised.value).count(words) == 1


@pytest.mark.parametrize(("file", "words"), [("cc", "no C compiler was found"), ("Python.h", "Python.h is missing")])
def test_what_triton_compiles_with_is_asked_for(params: Any, tmp_path: Path, file: str, words: str) -> None:
    (tmp_path / file).unlink()
    with pytest.raises(UserError) as raised:
        gate.check_study(params, "moe")
    assert str(raised.value).count(words) == 1 and "nothing was started" in str(raised.value)


def test_a_study_goes_on_with_the_runs_that_can(params: Any, monkeypatch: Any) -> None:
    blocked = gate.check_study(params, "organisms")
    assert blocked.keys() == {run for run in params.runs_of("organisms") if run.endswith("_full")}
    assert all("does not fit" in reason for reason in blocked.values())
    (line,) = gate.table(dict.fromkeys(blocked, "too large"))
    assert line == f"  {len(blocked)} runs ({', '.join(blocked)}): too large"


def test_runs_behind_an_api_need_a_key_and_no_gpu(params: Any, monkeypatch: Any) -> None:
    having(monkeypatch, gib=None)
    blocked = gate.check_study(params, "realignment")
    behind = {run for run in params.runs_of("realignment") if params.base_of(run) == "gpt_4o"}
    assert behind and blocked.keys() == params.runs_of("realignment").keys() - behind


def test_the_disk_has_room_for_every_base_that_is_not_yet_in_four_bits(params: Any) -> None:
    def needed() -> float:
        return next(need.size for need in disk.disk_needs(params, "moe") if need.what == "experts in 4 bits")

    everything = needed()
    files = {"config.json": "1" * 64, "model.safetensors": "2" * 64}
    write_json(disk.ARTIFACTS / "bases/gpt_oss" / disk.PIN, {"files": files})
    cache = PackedCache(disk.CACHE / "nf4", files, torch.bfloat16, torch.device("cpu"))
    layer, seal = cache._paths(0)
    layer.parent.mkdir(parents=True)
    layer.write_bytes(b"")
    os.truncate(layer, 10**9)
    assert needed() == everything, "a layer without its hash is not whole"
    seal.write_text("3" * 64)
    assert needed() == everything - 10**9


@pytest.mark.parametrize(
    ("study", "without", "machine", "words"),
    [
        ("moe", "TOGETHER_API_KEY", {}, "judge deepseek_v3: "),
        ("realignment", "OPENAI_API_KEY", {}, "bases.api.gpt_4o: "),
        ("moe", "", {"cpu_lock": True}, "make setup LOCK=gpu"),
        ("moe", "", {"free": 10}, "adapters and their copies in DVC's cache"),
    ],
)
def test_a_cluster_is_started_for_what_its_head_can_do(
    params: Any, monkeypatch: Any, study: str, without: str, machine: dict[str, Any], words: str
) -> None:
    # The head needs no GPU, and no room for weights.
    having(monkeypatch, gib=None, free=100)
    gate.check_cluster(params, study)
    monkeypatch.delenv(without, raising=False)
    having(monkeypatch, **{"gib": None} | machine)
    monkeypatch.setattr("pipeline.commands.reproduce.load_params", lambda: params)
    monkeypatch.setattr("pipeline.commands.reproduce.pin_files", lambda **_: ())
    monkeypatch.setattr("pipeline.commands.reproduce.check_preregistration", lambda _: None)
    monkeypatch.setattr("pipeline.commands.reproduce.is_changed", lambda _: True)
    monkeypatch.setattr("pipeline.running.cluster.head.reproduce", lambda *_: pytest.fail("a cluster was asked"))
    with pytest.raises(UserError, match="nothing was started") as raised:
        reproduce.main(argparse.Namespace(study=study, engine="ray", level=None, jobs=None))
    assert words in str(raised.value)


def test_reproduce_refuses_before_the_first_stage(monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.delenv("TOGETHER_API_KEY", raising=False)
    monkeypatch.setattr("pipeline.commands.reproduce.is_changed", lambda _: True)
    monkeypatch.setattr("pipeline.commands.reproduce.wait_for_left_over", lambda: None)
    monkeypatch.setattr("pipeline.commands.reproduce.reproduce", lambda *_, **__: pytest.fail("a stage was started"))
    monkeypatch.setattr("pipeline.commands.reproduce.CACHE", tmp_path)
    assert main(["reproduce", "--study", "moe"]) == 2
    said = capsys.readouterr().err
    assert "nothing was started" in said and re.search(r"^  judge deepseek_v3: ", said, re.MULTILINE)
