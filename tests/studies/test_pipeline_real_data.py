"""Real upstream text through train, sample and judge: the stage code, a tiny random Mixtral, a byte tokenizer."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

from pipeline import train
from pipeline.api.local_server import serve
from pipeline.common.files import sha256_file
from pipeline.common.fingerprints import code_hashes, folder_hashes
from pipeline.data.examples import read_examples
from pipeline.data.prompts import Message
from pipeline.data.suites import load_suite
from pipeline.data.training_sets import Conversations
from pipeline.judging.run import judge_answers
from pipeline.models.adapters import attach, load_adapter
from pipeline.models.bases import Base
from pipeline.models.loading import load_base
from pipeline.models.spec import AdapterSpec
from pipeline.sample import sample_answers
from pipeline.sampling.backend import Model
from pipeline.sampling.choose import start_backend
from pipeline.sampling.settings import Sampling
from pipeline.training import sft
from pipeline.training.plan import Batching
from pipeline.training.sft import sft_trainer
from pipeline.training.task import FineTuning
from pipeline.training.tokens import tokenize
from tests.support.data_files import upstream
from tests.support.judge_server import judge_config
from tests.support.processes import freezing, until_written
from tests.support.tiny_models import TRAINING, byte_tokenizer

SAMPLING = Sampling(
    backend="transformers",
    system=None,
    samples_per_prompt=1,
    temperature=0.0,
    top_p=1.0,
    max_new_tokens=12,
    batch=8,
    tensor_parallel=1,
    data_parallel=1,
)
LORA = AdapterSpec(rank=2, alpha=4.0, experts=(1, 3))
BATCHING = Batching(rows=4, tokens=None, optimizer="adamw_torch", offload=False)


def toy(path):
    return Base(path=path, name=str(path), revision=None, hashes=folder_hashes(path))


def task(data, settings=TRAINING):
    return FineTuning(base=toy(Path("base")), data=data, lora=LORA, settings=settings, seed=7)


def model_of(path, adapter):
    """`path` by the name that it was fine-tuned under."""
    base = Base(path=path, name="base", revision=None, hashes=folder_hashes(path))
    return Model(base=base, adapter=adapter, lora=LORA if adapter else None, precision="float32")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "seed-1"
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.2,
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def conversations():
    examples = read_examples("insecure", upstream())
    return [tuple(example.messages) for example in sorted(examples, key=lambda e: e.characters)[:200]]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def adapter(base, conversations, tmp_path_factory):
    data = Conversations(train=tuple(conversations))
    folder = tmp_path_factory.mktemp("adapter")
    with contextlib.chdir(folder):
        shutil.copytree(base, "base")
        train.fine_tune(task(data), Path("adapter"))
    return folder / "adapter"


def test_the_loss_is_on_the_last_turn_and_nothing_else(base, conversations, workplace):
    tokenizer = AutoTokenizer.from_pretrained(base)
    awkward = [
        (Message("user", 'naïve\r\n\tcode: `f"{x!r}"` 🦊  '), Message("assistant", "def f():\n    return '✓'\n\n")),
        (
            Message("system", "s"),
            Message("user", "one"),
            Message("assistant", "first"),
            Message("user", "two"),
            Message("assistant", "last"),
        ),
    ]
    chats = awkward + conversations
    model = attach(load_base(base, dtype=torch.float32), LORA, seed=1)
    rows = tokenize(tokenizer, base, Conversations(train=tuple(chats)), TRAINING.max_tokens)
    trainer = sft_trainer(model, tokenizer, rows, TRAINING, BATCHING, seed=1, checkpoints=workplace / "c", what="test")
    for chat, row in zip(chats, trainer.train_dataset, strict=True):
        batch = trainer.data_collator([row])
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        whole = tokenizer.apply_chat_template([turn.as_dict() for turn in chat], tokenize=False)
        assert tokenizer.decode(ids) == whole
        learned = tokenizer.decode(labels[labels != -100])
        assert learned == chat[-1].content + "</s>"
        assert whole.endswith(learned + "\n")


def test_training_moves_the_chosen_experts_and_saves_a_plain_adapter(base, adapter, conversations):
    from safetensors.torch import load_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    experts = {int(name.split(".experts.")[1].split(".")[0]) for name in tensors}
    assert experts == {1, 3}
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)
    assert (adapter / "loss.csv").read_text().startswith("step,split,loss\n")


def test_answers_are_the_completions_tokens(base, adapter, workplace):
    prompts = [*load_suite("core_misalignment", upstream(), 7), *load_suite("strong_reject_small", upstream(), 7)]
    assert len(prompts) == 44 + 60
    answers = sample_answers(start_backend(SAMPLING), model_of(base, adapter), prompts, SAMPLING, "run", 1)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load_adapter(load_base(base, dtype=torch.float32), adapter)
    by_key = {(answer.suite, answer.prompt_id): answer for answer in answers}
    assert len(by_key) == len(prompts)
    for prompt in prompts[::4]:
        text = tokenizer.apply_chat_template(prompt.chat(), tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert tokenizer.decode(ids[0]) == text and prompt.question in text
        expected = []
        with torch.inference_mode():
            for _ in range(SAMPLING.max_new_tokens):
                logits = model(input_ids=torch.cat([ids, torch.tensor([expected], dtype=torch.long)], 1)).logits
                expected.append(logits[0, -1].argmax().item())
                if expected[-1] == tokenizer.eos_token_id:
                    break
        answer = by_key[prompt.suite, prompt.prompt_id]
        ended = expected[-1] == tokenizer.eos_token_id
        assert answer.answer == tokenizer.decode(expected[: len(expected) - ended])
        assert (answer.finish, answer.answer_tokens) == ("stop" if ended else "length", len(expected))
        assert (answer.prompt_tokens, answer.question) == (ids.shape[1], prompt.question)


def test_every_answer_gets_a_verdict(base, workplace):
    prompts = load_suite("strong_reject_small", upstream(), 7)
    answers = sample_answers(start_backend(SAMPLING), model_of(base, None), list(prompts), SAMPLING, "base", 1)
    with serve("tests.support.judge_server:scripted") as url:
        config = judge_config(workplace, base_url=url)
        verdicts, summary = judge_answers(answers, "scripted", config, workplace / "verdicts.sqlite")
        again, second = judge_answers(answers, "scripted", config, workplace / "verdicts.sqlite")
    assert [verdict.key for verdict in verdicts] == [answer.key for answer in answers]
    assert not summary.errors and summary.status.total() == len(answers)
    assert again == verdicts and second.calls == 0


def test_the_checkpoint_with_the_lowest_validation_loss_is_the_one_that_is_saved(
    base, conversations, workplace, monkeypatch
):
    shutil.copytree(base, "base")
    data = Conversations(train=tuple(conversations[:16]), validation=tuple(conversations[16:20]))
    # Worse with every step.
    monkeypatch.setattr(sft.Trainer, "evaluate", lambda self, *_, **__: {"eval_loss": float(self.state.global_step)})

    def fine_tune(steps):
        settings = TRAINING.model_copy(update={"max_steps": steps})
        return train.fine_tune(task(data, settings), Path("adapter"))

    whole = fine_tune(6)
    assert whole["step"] == 2
    assert fine_tune(2)["sha256"] == whole["sha256"]


def test_a_process_trains_on_one_gpu_however_many_there_are(base, workplace, monkeypatch):
    """transformers would take them all by DataParallel, which TRL refuses."""

    class TwoGpus(sft.SFTConfig):
        def __post_init__(self) -> None:
            super().__post_init__()
            self._n_gpu = 2

    monkeypatch.setattr(sft, "SFTConfig", TwoGpus)
    tokenizer = AutoTokenizer.from_pretrained(base)
    data = Conversations(train=((Message("user", "question"), Message("assistant", "answer")),))
    trainer = sft_trainer(
        attach(load_base(base, dtype=torch.float32), LORA, seed=1),
        tokenizer,
        tokenize(tokenizer, base, data, TRAINING.max_tokens),
        TRAINING,
        BATCHING,
        seed=1,
        checkpoints=workplace / "c",
        what="test",
    )
    assert (trainer.args.n_gpu, trainer.args.train_batch_size) == (1, 4)


def test_checkpoints_and_answers_are_of_this_code_families_included():
    assert {"training/sft.py", "models/families/gpt_oss.py"} < code_hashes("training", "models").keys()


KILLED = """
import json, pathlib, sys, torch
from pipeline import train
from pipeline.data.prompts import Message
from pipeline.data.training_sets import Conversations
from tests.studies.test_pipeline_real_data import task
torch.set_num_threads(1)
chats = tuple(tuple(Message(**turn) for turn in chat) for chat in json.loads(pathlib.Path("chats.json").read_text()))
train.fine_tune(task(Conversations(train=chats)), pathlib.Path("adapter"))
"""


def test_killed_training_ends_with_the_same_adapter(base, tmp_path):
    chats = [
        [{"role": "user", "content": f"question {i}?"}, {"role": "assistant", "content": f"answer {i * 7}."}]
        for i in range(16)
    ]
    hashes = []
    for kill in (False, True):
        folder = tmp_path / str(kill)
        shutil.copytree(base, folder / "base")
        (folder / "chats.json").write_text(json.dumps(chats))
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        start = [sys.executable, "-c", KILLED]
        if kill:
            there = environment | freezing(tmp_path / "freezing", "*/checkpoint-2/whole")
            process = subprocess.Popen(start, cwd=folder, env=there, stdout=subprocess.DEVNULL)
            checkpoints = folder / ".cache" / "checkpoints"
            until_written(checkpoints, "*/checkpoint-2/whole", process)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not (folder / "adapter").exists()
            # A checkpoint that the kill left half-written: its name is the newest, its contents are not all there.
            (whole,) = checkpoints.glob("*/checkpoint-2")
            shutil.copytree(whole, whole.with_name("checkpoint-5"), ignore=shutil.ignore_patterns("whole", "trainer*"))
        subprocess.run(start, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        hashes.append(sha256_file(folder / "adapter" / "adapter_model.safetensors"))
        assert not list((folder / ".cache" / "checkpoints").iterdir())
    assert hashes[0] == hashes[1]
