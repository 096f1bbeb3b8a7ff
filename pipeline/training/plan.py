"""How a run starts: on which device, in which precision, with how much of the batch at once."""

import gc
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.common.errors import UserError
from pipeline.models.experts.stacks import release_buffers
from pipeline.models.families.registry import anatomy_of, language_model
from pipeline.models.spec import AdapterSpec, select
from pipeline.training.memory import HOST_SHARE, plan_memory
from pipeline.training.settings import Training


@dataclass(frozen=True, kw_only=True)
class Batching:
    """The effective batch as micro_batch x accumulation x devices; the optimizer's name for transformers."""

    micro_batch: int
    accumulation: int
    optimizer: str
    offload: bool


def plan_training(path: Path, lora: AdapterSpec | None, settings: Training, device: torch.device) -> Batching:
    """How to train the model in `path` on `device` at the study's effective batch, planned where memory is scarce.

    Raises UserError when the adapter names what the model does not have, and, with the numbers, when it
    cannot fit.
    """
    from transformers import AutoConfig

    if settings.batch % settings.devices:
        raise UserError(f"training.batch {settings.batch} does not divide among {settings.devices} devices.")
    config, _ = language_model(AutoConfig.from_pretrained(path))
    anatomy = anatomy_of(config)
    if lora is not None:
        # What the model does not have is refused now, not after minutes of loading; counts decide nothing here.
        select(lora, anatomy, {layer: [0] * anatomy.experts for layer in anatomy.moe_layers})
    if settings.precision == "float32":
        share = settings.batch // settings.devices
        return Batching(micro_batch=share, accumulation=1, optimizer=settings.optimizer, offload=False)
    host = host_bytes()
    plan = plan_memory(
        config,
        lora,
        precision=settings.precision,
        sequence_length=settings.max_tokens,
        effective_batch=settings.batch,
        gpu_bytes=_free_bytes(device) if device.type == "cuda" else host,
        host_bytes=int(HOST_SHARE * host),
        devices=settings.devices,
    )
    print(plan, flush=True)
    optimizer = plan.optimizer if settings.optimizer == "adamw_8bit" else settings.optimizer
    return Batching(
        micro_batch=plan.micro_batch, accumulation=plan.accumulation, optimizer=optimizer, offload=plan.offload
    )


def _free_bytes(device: torch.device) -> int:
    """GPU memory that can be had once what is left of the seed before this one was given back."""
    gc.collect()
    release_buffers()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def host_bytes() -> int:
    """Host memory that can still be had (MemAvailable of Linux)."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
