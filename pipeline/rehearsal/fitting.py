"""What of a rehearsal fits this machine, planned before gigabytes are written: memory run by run, and disk.

With a GPU, plans are those that the stages make on it. Without one, a stage's memory is host memory, which Linux gives
without a word and takes back by ending the process: so what it will take is reckoned here.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.machine import free_memory_bytes, memory_bytes
from pipeline.doctor.asked import asked_of
from pipeline.doctor.gate import usable_gpu
from pipeline.doctor.plans import RunPlan, plan_run
from pipeline.models.families.registry import anatomy_of
from pipeline.models.known import checkpoint_bytes
from pipeline.models.sizes import CONTEXT, GIB, HALF, HOST_SHARE, SINGLE, adapter_values, base_bytes, base_values
from pipeline.params.inputs import suites_asked
from pipeline.params.schema import Params, Run

GB = 10**9
# What chat templates put around a row, and bytes of it a token: both on the safe side.
TEMPLATE_TOKENS, BYTES_A_TOKEN = 96, 2
# More than any plan asks for: everything at once, nothing kept elsewhere.
UNLIMITED = 2**60
# Of 32 bits and as large as the largest parameter, what bitsandbytes' 8-bit Adam holds on a CPU while it works: the
# gradient, both moments, a root, a quotient.
ADAM_TENSORS = 5


@dataclass(frozen=True)
class LeftOut:
    """Why a run is not rehearsed here; bytes that it needs (None: the GPU's own plans say it), and that there are."""

    why: str
    needed_bytes: int | None
    available_bytes: int


def left_out(small: Params, study: str, configs: Mapping[str, Any]) -> dict[str, LeftOut]:
    """The runs that this machine has no memory for, and those that continue them.

    small: params.yaml as it is rehearsed; configs: its bases' configurations, of as few layers as they will have.
    """
    gpu, host, found = usable_gpu(), int(HOST_SHARE * memory_bytes()), {}
    available = min(free_memory_bytes(), host) if gpu is None else gpu.memory or UNLIMITED
    for run in small.runs_of(study):
        config = configs[small.base_of(run)]
        before = next((link for link in small.chain(run) if link in found), None)
        plan = _plan(small, run, config, UNLIMITED if gpu is None else available, host)
        if before is not None:
            found[run] = LeftOut(f"it continues {before}", None, available)
        elif plan.trouble is not None:
            found[run] = LeftOut(plan.trouble, None, available)
        elif gpu is None:
            needed_by = needs(plan, config, small.run(run), small.study(study).training.precision)
            stage, parts = max(needed_by.items(), key=lambda it: sum(it[1].values()))
            if (needed := sum(parts.values())) > available:
                said = ", ".join(f"{what} {size / GIB:.1f}" for what, size in parts.items() if size > 0.05 * GIB)
                numbers = f"{needed / GIB:.1f} GiB of memory, and there are {available / GIB:.1f}"
                found[run] = LeftOut(f"without a GPU its {stage} needs {numbers} ({said})", needed, available)
    return found


def needs(plan: RunPlan, config: Any, run: Run, precision: str) -> dict[str, dict[str, int]]:
    """Bytes of host memory that each step of a run takes where there is no GPU, by what holds them.

    The parts of its plan for a GPU, and what a CPU takes besides; what is for CUDA there, imports and tokenizer take.
    Measured: benchmarks/README.md.
    """
    assert plan.sampling is not None
    # bitsandbytes' CPU kernel writes into no tensor that it is given: its own is copied.
    twice = plan.sampling.parts["dequantised layer"]
    found = {"sampling": plan.sampling.parts | {"dequantised layer, again": twice}}
    if plan.training is not None:
        found["training"] = plan.training.parts | {"dequantised layer, again": twice}
    if run.whole:
        anatomy = anatomy_of(config)
        largest = max(config.vocab_size, 2 * anatomy.width * max(anatomy.experts, 1)) * anatomy.hidden
        found["training"]["Adam's own"] = ADAM_TENSORS * SINGLE * largest
    elif run.lora is not None and precision == "nf4":
        # fidelity.py: every expert in 32 bits, and the last layer's gates and up projections once more while its down
        # projections are still to come.
        values, packed = base_values(config), base_bytes(config)
        found["comparison of adapter and merged model"] = {
            "in 4 bits": round(packed["experts"] + packed["attention"]),
            "in 32 bits": SINGLE * (values["experts"] + values["embeddings"] + values["routers"]),
            "dequantised layer, again": twice,
            "imports": round(CONTEXT),
        }
    return found


def _plan(small: Params, run: str, config: Any, gpu_bytes: int, host_bytes: int) -> RunPlan:
    """The run's plan for what it is trained on and asked, before anything is tokenized."""
    study = small.study(small.run(run).study)
    asked = asked_of(study, suites_asked(study, small.run(run)), study.seeds[0], study.sampling.samples_per_prompt)
    row = study.training.max_characters
    return plan_run(
        small,
        run,
        config,
        asked,
        gpu_bytes=gpu_bytes,
        host_bytes=host_bytes,
        row_tokens=None if row is None else min(study.training.max_tokens, _tokens(row)),
    )


def _tokens(size: int) -> int:
    """Of a text of so many bytes under a chat template, at most."""
    return size // BYTES_A_TOKEN + TEMPLATE_TOKENS


def check_disk(small: Params, study: str, configs: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError, with the numbers, unless `folder` has room for what the rehearsal will write there."""
    nf4 = small.study(study).training.precision == "nf4"
    bases = [configs[base] for base in small.bases_of(study)]
    weights = sum(checkpoint_bytes(config) for config in bases)
    packed = sum(base_bytes(config)["experts"] for config in bases) if nf4 else 0
    kept = checkpoint = 0.0
    for run, entry in small.runs_of(study).items():
        config = configs[small.base_of(run)]
        if entry.data is not None:
            values = adapter_values(config, entry.lora) if entry.lora else sum(base_values(config).values())
            # As for the study itself (pipeline/doctor/disk.py): DVC may copy what is kept, and the checkpoint before
            # the last goes after it.
            kept += 2 * len(small.seeds_of(run)) * (SINGLE if entry.lora else HALF) * values
            checkpoint = max(checkpoint, 2 * 3 * SINGLE * values)
    parts = {"weights": weights, "experts in 4 bits": packed, "trained": kept, "checkpoints of one run": checkpoint}
    needed, free = sum(parts.values()), shutil.disk_usage(folder).free
    if needed > free:
        said = ", ".join(f"{what} {size / GB:.1f}" for what, size in parts.items() if size)
        raise UserError(
            f"{folder} is on a disk with {free / GB:.1f} GB free, and a rehearsal of study {study} writes "
            f"{needed / GB:.1f} GB there ({said}): name another --folder, fewer --runs, or --layers 1."
        )
