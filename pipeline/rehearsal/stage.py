"""A stage of a rehearsal on a processor that has no products in 16 bits: they are computed in 32, and rounded.

python -m pipeline.rehearsal.stage COMMAND ... is `python -m pipeline COMMAND ...` so changed. Without it, a backward
pass of full width takes hours there (0.24 GFLOP/s measured on an AMD EPYC without AVX512-BF16), and shows nothing more.
"""

import functools
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.numerics import pin_kernels

if TYPE_CHECKING:
    import torch


def compute_products_in_32_bits() -> None:
    """From now on. A mode of torch's dispatch would not do: the forward pass that backward repeats does not see it."""
    import torch

    products = (
        *((torch.nn.functional, name) for name in ("linear", "grouped_mm")),
        *((torch, name) for name in ("matmul", "mm", "bmm", "addmm", "baddbmm")),
        *((torch.Tensor, name) for name in ("matmul", "__matmul__", "mm", "bmm")),
    )
    for place, name in products:
        setattr(place, name, in_32_bits(getattr(place, name)))


def in_32_bits(product: "Callable[..., torch.Tensor]") -> "Callable[..., torch.Tensor]":
    """The product of tensors on the CPU, by way of float32 where one of them is in bfloat16."""

    import torch

    @functools.wraps(product)
    def wide(*args: Any, out: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        if out is not None:
            return out.copy_(wide(*args, **kwargs))
        if not any(_is_half(value) for value in (*args, *kwargs.values())):
            return product(*args, **kwargs)
        args, kwargs = tuple(map(_widen, args)), {name: _widen(value) for name, value in kwargs.items()}
        with torch.autocast("cpu", enabled=False):
            return product(*args, **kwargs).to(torch.bfloat16)

    return wide


def _is_half(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 and value.device.type == "cpu"


def _widen(value: Any) -> Any:
    return value.float() if _is_half(value) else value


def has_16_bit_products() -> bool:
    """Whether this machine multiplies in bfloat16 by itself: a GPU, or a processor that says so."""
    import torch

    flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    return torch.cuda.is_available() or "avx512_bf16" in flags or "amx_bf16" in flags


if __name__ == "__main__":
    pin_kernels()  # before torch is imported, as the stage itself would
    compute_products_in_32_bits()
    runpy.run_module("pipeline", run_name="__main__", alter_sys=True)
