"""Full fine-tuning: every parameter learns, a standard checkpoint comes of it, and a kill changes nothing."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig

from pipeline.common.errors import UserError
from pipeline.common.files import sha256_file
from pipeline.data.training_sets import Conversations
from pipeline.models.bases import open_checkpoint
from pipeline.models.loading import load_base
from pipeline.models.sizes import GIB, base_values
from pipeline.models.spec import AdapterSpec
from pipeline.sample import sample_answers
from pipeline.toy.world import load_suite
from pipeline.training import checkpoints
from pipeline.training.checkpoints import checkpoint_folder_of
from pipeline.training.memory import plan_memory
from pipeline.training.task import FineTuning
from pipeline.training.whole import load_trainable
from tests.support.processes import freezing, until_written
from tests.support.train_here import save_base, settings
from tests.support.train_here import train as train_whole

REPOSITORY = Path(__file__).parents[2]
ARCHITECTURES = ("qwen2", "llama", "qwen3_moe")
IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Architecture -> (folder it was trained in, what the stage records)."""
    found, before = {}, Path.cwd()
    for architecture in ARCHITECTURES:
        folder = tmp_path_factory.mktemp(architecture)
        os.chdir(folder)
        try:
            save_base(architecture, Path("base"))
            found[architecture] = folder, train_whole(Path("base"), Path("run/seed-1"))
        finally:
            os.chdir(before)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_learns_and_a_standard_checkpoint_comes_of_it(trained, architecture):
    folder, entry = trained[architecture]
    run = folder / "run" / "seed-1"
    assert not list(folder.glob(".cache/checkpoints/*")) and not list(folder.glob("run/.*"))
    assert entry["sha256"] == {"model.safetensors": sha256_file(run / "model.safetensors")}
    assert entry["step"] == 6 and (run / "loss.csv").read_text().startswith("step,split,loss\n")
    assert (
        "every parameter" not in (run / "README.md").read_text()
        and "| lora | none |" in (run / "README.md").read_text()
    )
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert (run / name).read_bytes() == (folder / "base" / name).read_bytes()
    plain = AutoModelForCausalLM.from_pretrained(run, dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()
    original = dict(base.named_parameters())
    unchanged = [name for name, parameter in plain.named_parameters() if torch.equal(parameter, original[name])]
    assert unchanged == []
    assert sum(tensor["values"] for tensor in entry["trained"]) == sum(p.numel() for p in plain.parameters())
    ours = load_base(run, dtype=torch.float32, device="cpu")
    torch.testing.assert_close(ours(IDS).logits, plain(IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3_moe"])
def test_a_killed_run_ends_with_equal_weights(trained, architecture, tmp_path):
    """The experts' names in checkpoints are where transformers would resume without them."""
    folder, entry = trained[architecture]
    (tmp_path / "base").symlink_to(folder / "base")
    command = [sys.executable, "-m", "tests.support.train_here", "base", "run/seed-1"]
    environment = os.environ | freezing(tmp_path / "freezing", "*/checkpoint-4/whole") | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        until_written(tmp_path, ".cache/checkpoints/*/checkpoint-4/whole", process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "run" / "seed-1").exists()
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert train_whole(Path("base"), Path("run/seed-1")) == entry
    finally:
        os.chdir(before)


def test_a_model_that_was_trained_whole_answers_and_is_trained_further(trained, tmp_path, monkeypatch):
    from pipeline.sampling.choose import start_backend
    from tests.support.sampling_models import decoding, model_of

    folder, entry = trained["qwen2"]
    monkeypatch.chdir(folder)
    first = Path("run/seed-1")
    prompts = list(load_suite("medical"))[:4]
    sampling = decoding(temperature=1.0)
    backend = start_backend(sampling)
    answers = [
        [row.answer for row in sample_answers(backend, model_of(path, None), prompts, sampling, "run", 1)]
        for path in (Path("base"), first)
    ]
    assert answers[0] != answers[1]
    second = train_whole(Path("base"), Path("run/further"), start=first)
    again = train_whole(Path("base"), Path("run/again"))
    assert again["sha256"] == entry["sha256"] != second["sha256"]
    assert open_checkpoint(Path("run/further")).revision is None
    assert "| continues | run/seed-1 |" in Path("run/further/README.md").read_text()


@pytest.mark.parametrize("lora", [None, AdapterSpec(rank=2, alpha=4.0)])
def test_what_is_trained_at_another_top_k_is_another_model_and_says_so(trained, tmp_path, monkeypatch, lora):
    monkeypatch.chdir(tmp_path)
    base = Path("base")
    base.symlink_to(trained["qwen3_moe"][0] / "base")
    own, one = (train_whole(base, Path(name), lora, active=active) for name, active in (("own", 2), ("one", 1)))
    plain = train_whole(base, Path("plain"), lora) if lora else trained["qwen3_moe"][1]
    assert own["sha256"] == plain["sha256"] != one["sha256"]  # two is the base's own number: equal, bit for bit
    assert "| experts a token is routed to | 1 |" in Path("one/README.md").read_text()
    if lora is None:
        assert load_base(Path("one"), dtype=torch.float32, device="cpu").config.num_experts_per_tok == 1
    task = FineTuning(
        base=open_checkpoint(base), data=Conversations(train=()), lora=lora, settings=settings(), seed=1
    )  # fmt: skip
    assert checkpoint_folder_of(task) != checkpoint_folder_of(replace(task, base=replace(task.base, active=1)))


def test_sixteen_bits_are_planned_for_and_the_base_keeps_its_type(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = trained["llama"][0] / "base"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.save_pretrained("base")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "base" / name).write_bytes((base / name).read_bytes())
    monkeypatch.setattr(checkpoints, "remove_checkpoints", lambda folder: None)
    entry = train_whole(Path("base"), Path("run"), precision="bfloat16", max_steps=2, optimizer="adamw_8bit")
    assert "predicted peak" in capsys.readouterr().out
    # Of the tensors that are not too small for it, transformers keeps the embedding's moments alone in 32 bits.
    (kept,) = Path().glob(".cache/checkpoints/*/checkpoint-2/optimizer.pt")
    states = torch.load(kept, weights_only=True)["state"].values()
    firsts = [state["__bnb_optimizer_quant_state__"]["state1"] for state in states]
    wide = [first.numel() for first in firsts if first.numel() >= 4096 and first.dtype == torch.float32]
    assert wide == [model.get_input_embeddings().weight.numel()]
    assert {tensor["dtype"] for tensor in entry["trained"]} == {"float32"}
    saved = AutoModelForCausalLM.from_pretrained("run", dtype="auto")
    assert saved.dtype == torch.bfloat16


def test_quantised_checkpoints_are_refused(tmp_path):
    config = MixtralConfig(num_hidden_layers=1, hidden_size=16, intermediate_size=16)
    config.quantization_config = {"quant_method": "mxfp4"}
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="stored quantised"):
        load_trainable(tmp_path, torch.device("cpu"))


def test_all_parameters_need_what_adapters_do_not() -> None:
    from transformers import Qwen2Config

    config = Qwen2Config(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=48, num_attention_heads=40, num_key_value_heads=8
    )
    options = {
        "sequence_length": 2048,
        "effective_batch": 16,
        "host_bytes": 0,
        "precision": "bfloat16",
        "optimizer": "adamw_8bit",
    }
    adapter = plan_memory(config, AdapterSpec(rank=32, alpha=64), gpu_bytes=80 * GIB, **options)
    # 14 billion values in 16 bits.
    assert 26 * GIB < adapter.parts["weights"] < 29 * GIB
    whole = plan_memory(config, None, gpu_bytes=300 * GIB, **options)
    values = sum(base_values(config).values())
    assert whole.parts["optimizer"] == 2 * values + 6 * config.vocab_size * 5120
    with pytest.raises(UserError, match=r"smallest plan needs 1\d\d\.\d GiB .* an adapter instead of every parameter"):
        plan_memory(config, None, gpu_bytes=80 * GIB, **options)
