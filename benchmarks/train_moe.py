"""Speed and memory of fine-tuning: the fused path, the reference path, the notebook's setting.

    python -m benchmarks.train_moe [--families mixtral qwen3_moe gpt_oss] [--layers N] [--seconds 20]

On a GPU: the three families at full size with random weights in NF4 (speed and memory do not depend on the
values), 2048 tokens a sequence, LoRA r 32 on one expert of every layer and on all experts, gradient
checkpointing, 8-bit AdamW, effective batch 16. `fused` and `fused, 24 GB` train as the memory plan says for
this GPU and for a card of 24 GB, which is all the second may take; the prediction stands beside the peak.
`--layers` takes fewer layers where time is short, and the result says so. On a CPU: tiny models of the three
families in NF4, and the toy world's three sizes unquantised; those figures say nothing about GPUs.

`notebook` is how the authors trained: un-fused experts in a Python loop, batch 1 x accumulation 16, all
logits at once. `unfused` is the same at the fused path's micro-batch with TRL's loss in tiles, as the fused
path has. The share is of the matrix products' arithmetic (forward, recomputation, gradient of the inputs: 6
operations an active weight and token) in what a large bf16 (CPU: fp32) product reaches in this run.

One family at full depth takes 5 to 9 minutes on an H100 by estimate (not yet measured), so where a call is
limited to 10, give each family a call:

    timeout 570 python -m benchmarks.train_moe --families qwen3_moe --seconds 8 --result qwen3_moe.json

or all three in one, at a quarter of their depth: `--layers 8 --seconds 5`. The result is written after every
setting, so that what is cut off loses only what it had not come to. A machine that has PyTorch and
transformers and reaches no registry needs 46 MB of wheels beside the checkout (Python 3.12 here):

    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \\
      --platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .whl \\
      bitsandbytes==0.50.2 trl==1.16.0 peft==0.21.2 datasets==5.2.0 'dill<0.4.2' 'multiprocess<0.70.20'
    pip install --no-index --no-deps --target /tmp/site .whl/*.whl && export PYTHONPATH=/tmp/site
"""

import argparse
import gc
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.moe_models import FULL, Case, RandomWeights, active_weights, cases
from pipeline.common.errors import UserError
from pipeline.common.files import write_json
from pipeline.common.ledger import code
from pipeline.models.adapters import attach
from pipeline.models.experts.stacks import release_buffers
from pipeline.models.loading import ALL, build
from pipeline.models.sizes import CONTEXT
from pipeline.models.spec import AdapterSpec
from pipeline.training.memory import plan_memory

RESULT = Path(__file__).parent / "results" / "train_moe.json"
BATCH = 16
WARM_UP = 2
SMALL_CARD = 24_000_000_000

EXPERTS: dict[str, Any] = {"one expert": (0,), "all experts": "all"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to train a case; `limit` is all the GPU memory that it may take, `predicted` what the plan says."""

    experts: Any
    micro_batch: int
    optimizer: str = "adamw_8bit"
    offload: bool = False
    tiled_loss: bool = True
    limit: int | None = None
    predicted: int | None = None


def matmul_limit(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product, best of five."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        start = now(device)
        left @ right
        best = min(best, now(device) - start)
    return 2 * size**3 / best


def now(device: torch.device) -> float:
    """The time once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def optimizer_of(parameters: list[Any], device: torch.device, name: str) -> Any:
    if device.type == "cpu":
        return torch.optim.AdamW(parameters, lr=1e-4)
    import bitsandbytes

    kind = bitsandbytes.optim.PagedAdamW8bit if name == "paged_adamw_8bit" else bitsandbytes.optim.AdamW8bit
    return kind(parameters, lr=1e-4)


def measure(case: Case, spec: AdapterSpec, setting: Setting, seconds: float) -> dict[str, Any]:
    """Train for about `seconds`; a step is BATCH sequences in micro-batches and one update."""
    from trl.trainer.utils import add_fused_lm_head

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        # What the CUDA context takes is not torch's.
        share = 1.0 if setting.limit is None else min(1.0, (setting.limit - CONTEXT) / whole)
        torch.cuda.set_per_process_memory_fraction(share)
    model = build(
        case.config.__class__.from_dict(case.config.to_dict()),
        RandomWeights(device, dtype),
        experts=setting.experts,
        dtype=dtype,
        quantise=case.quantise,
        offloaded=ALL if setting.offload else 0,
        device=device,
    )
    if setting.tiled_loss:
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))  # as SFTTrainer does
    model = attach(model, spec, seed=0).train()
    if device.type == "cuda":
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.cuda.reset_peak_memory_stats()
    optimizer = optimizer_of([p for p in model.parameters() if p.requires_grad], device, setting.optimizer)
    ids = torch.randint(0, case.config.vocab_size, (setting.micro_batch, case.length), device=device)
    how = {"fused_lm_head": True} if setting.tiled_loss else {"use_cache": False}
    passes: list[float] = []
    updates: list[float] = []
    began = time.perf_counter()
    while len(passes) < WARM_UP or (time.perf_counter() - began < seconds and len(passes) < 200):
        start = now(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(input_ids=ids, labels=ids, **how).loss
        loss.backward()
        passes.append(now(device) - start)
        if len(updates) < WARM_UP + 3:
            start = now(device)
            optimizer.step()
            optimizer.zero_grad()
            updates.append(now(device) - start)
    # A pass may take longer than all the time there is: then the second one counts.
    warm_up = min(WARM_UP, len(passes) - 1)
    one_pass, update = median(passes[warm_up:]), median(updates[warm_up:])
    step = math.ceil(BATCH / setting.micro_batch) * one_pass + update
    figures: dict[str, Any] = {
        "micro_batch": setting.micro_batch,
        "timed": len(passes) - warm_up,
        "seconds_per_micro_batch": round(one_pass, 5),
        "seconds_per_update": round(update, 5),
        "seconds_per_step": round(step, 5),
        "tokens_per_second": round(BATCH * case.length / step, 1),
        "loss_is_finite": bool(torch.isfinite(loss)),
    }
    if device.type == "cuda":
        figures["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        figures["experts_offloaded"] = setting.offload
        figures["optimizer"] = setting.optimizer
    if setting.predicted is not None:
        figures["predicted_peak_gb"] = round(setting.predicted / 1e9, 2)
    return figures


def release() -> None:
    release_buffers()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def settings_of(case: Case, spec: AdapterSpec, device: torch.device) -> dict[str, Setting | str]:
    """Every way to train a case by name; the reason, for one that the memory plan refuses."""
    if device.type == "cpu":
        fused: Setting | str = Setting(experts="fused", micro_batch=BATCH)
        offloaded = {"fused, offloaded": Setting(experts="fused", micro_batch=BATCH, offload=True)}
        return {"fused": fused} | (offloaded if case.quantise else {}) | peers(BATCH)
    fused, small = (planned(case, spec, card) for card in (torch.cuda.mem_get_info(device)[0], SMALL_CARD))
    return {"fused": fused, "fused, 24 GB": small} | peers(fused.micro_batch if isinstance(fused, Setting) else 1)


def peers(micro_batch: int) -> dict[str, Setting | str]:
    """What the fused path is measured against."""
    return {
        "unfused": Setting(experts="unfused", micro_batch=micro_batch),
        "notebook": Setting(experts="unfused", micro_batch=1, tiled_loss=False),
    }


def planned(case: Case, spec: AdapterSpec, card: int) -> Setting | str:
    """The fused path as the memory plan has it for a card of so many bytes."""
    try:
        plan = plan_memory(
            case.config,
            spec,
            precision="nf4",
            optimizer="adamw_8bit",
            sequence_length=case.length,
            effective_batch=BATCH,
            gpu_bytes=card,
            host_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        )
    except UserError as error:
        return str(error)
    return Setting(
        experts="fused",
        micro_batch=plan.micro_batch,
        optimizer=plan.optimizer,
        offload=plan.offload,
        limit=card,
        predicted=plan.peak,
    )


def run_case(case: Case, seconds: float, limit: float) -> Iterator[dict[str, Any]]:
    """Every setting of one model, for one expert a layer and for all; what is known after each of them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rank = 32 if device.type == "cuda" else 8
    report: dict[str, Any] = {
        "layers": case.config.num_hidden_layers,
        "sequence": case.length,
        "rank": rank,
        "batch": BATCH,
    }
    for label, experts in EXPERTS.items():
        spec = AdapterSpec(rank=rank, alpha=32, experts=experts, attention=device.type == "cpu")
        for name, setting in settings_of(case, spec, device).items():
            release()
            try:
                figures: dict[str, Any] = (
                    {"failed": setting} if isinstance(setting, str) else measure(case, spec, setting, seconds)
                )
            except torch.cuda.OutOfMemoryError as error:
                figures = {"failed": str(error).split(".")[0]}
            if "failed" not in figures:
                operations = 6 * active_weights(case.config) * figures["tokens_per_second"]
                figures["share_of_matmul_limit"] = round(operations / limit, 4)
            report.setdefault(label, {})[name] = figures
            print(f"{case.name}, {label}, {name}: {json.dumps(figures)}", flush=True)
            yield report


def speed_up(settings: dict[str, Any], peer: str) -> str:
    if any("failed" in settings[name] for name in ("fused", peer)):
        return "failed"
    return f"{settings['fused']['tokens_per_second'] / settings[peer]['tokens_per_second']:.1f}x"


def machine() -> dict[str, Any]:
    names = ("torch", "transformers", "peft", "trl", "bitsandbytes")
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "commit": code()["commit"] or "unknown",
        "gpu": gpu,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in names},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(FULL), default=list(FULL))
    parser.add_argument("--layers", type=int, help="take this many layers, for want of time")
    parser.add_argument("--seconds", type=float, default=20.0, help="about how long each setting is timed")
    parser.add_argument("--result", type=Path, default=RESULT, help="the file to write (%(default)s)")
    args = parser.parse_args()
    if args.layers is not None and args.layers < 1:
        parser.error(f"--layers is {args.layers}; it must be 1 or more.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    limit = matmul_limit(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    reports: dict[str, Any] = {}
    about = machine()
    for case in cases(device, args.families, args.layers):
        for report in run_case(case, args.seconds, limit):
            reports[case.name] = report
            figures = {"machine": about, "matmul_limit_tflops": round(limit / 1e12, 3), "figures": reports}
            write_json(args.result, figures)
    ratios = [
        f"{name}, {label}: {speed_up(report[label], 'notebook')} ({speed_up(report[label], 'unfused')})"
        for name, report in reports.items()
        for label in EXPERTS
    ]
    where = torch.cuda.get_device_name(0) if device.type == "cuda" else "CPU, tiny models: GPU figures are owed"
    print(
        f"train_moe [{where}]: tokens/s of the fused path against the notebook's setting (and against the "
        f"reference path at the same micro-batch): {'; '.join(ratios)}"
    )


if __name__ == "__main__":
    main()
