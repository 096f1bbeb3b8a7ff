"""How a run starts: on which device, in which precision, with how much of the batch at once."""

import gc
from dataclasses import dataclass

import torch

from pipeline.common.errors import UserError
from pipeline.common.machine import free_memory_bytes
from pipeline.models.bases import Base
from pipeline.models.checkpoint import read_language_config
from pipeline.models.experts.stacks import release_buffers
from pipeline.models.families.registry import anatomy_of
from pipeline.models.sizes import HOST_SHARE
from pipeline.models.spec import AdapterSpec, select
from pipeline.training.memory import plan_memory
from pipeline.training.settings import Training


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How a process computes its `rows` of a step's batch; the optimizer's name for transformers.

    tokens: what a micro-batch may hold, padding included; None: all rows at once, as they come.
    """

    rows: int
    tokens: int | None
    optimizer: str
    offload: bool


def plan_training(
    base: Base, lora: AdapterSpec | None, settings: Training, device: torch.device, longest: int
) -> Batching:
    """How to train `base` on `device` at the study's effective batch, planned where memory is scarce.

    longest: tokens of the longest row. Raises UserError when the adapter names what the model does not have, and,
    with the numbers, when it cannot fit.
    """
    if settings.batch % settings.devices:
        raise UserError(f"training.batch {settings.batch} does not divide among {settings.devices} devices.")
    config = read_language_config(base.path, base.active)
    anatomy = anatomy_of(config)
    if lora is not None:
        # What the model does not have is refused now, not after minutes of loading; counts decide nothing here.
        select(lora, anatomy, {layer: [0] * anatomy.experts for layer in anatomy.moe_layers})
    rows = settings.batch // settings.devices
    if settings.precision == "float32":
        return Batching(rows=rows, tokens=None, optimizer=settings.optimizer, offload=False)
    host = free_memory_bytes()
    plan = plan_memory(
        config,
        lora,
        precision=settings.precision,
        optimizer=settings.optimizer,
        sequence_length=longest,
        effective_batch=settings.batch,
        gpu_bytes=_free_bytes(device) if device.type == "cuda" else host,
        host_bytes=int(HOST_SHARE * host),
        devices=settings.devices,
    )
    print(plan, flush=True)
    return Batching(rows=rows, tokens=plan.tokens, optimizer=plan.optimizer, offload=plan.offload)


def _free_bytes(device: torch.device) -> int:
    """GPU memory that can be had once what is left of the seed before this one was given back."""
    gc.collect()
    release_buffers()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
