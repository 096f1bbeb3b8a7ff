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

# Values of a weight that are copied to 32 bits at once, where it has more.
PART = 2**25


def compute_products_in_32_bits() -> None:
    """From now on. A mode of torch's dispatch would not do: the forward pass that backward repeats does not see it."""
    import torch
    from torch.nn import functional

    products = (
        (functional, "scaled_dot_product_attention"),
        *((torch, name) for name in ("matmul", "mm", "bmm", "addmm", "baddbmm")),
        *((torch.Tensor, name) for name in ("matmul", "__matmul__", "mm", "bmm")),
    )
    for place, name in products:
        setattr(place, name, in_32_bits(getattr(place, name)))
    functional.linear = linear_in_32_bits(functional.linear)
    functional.grouped_mm = grouped_in_32_bits(functional.grouped_mm)


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


def linear_in_32_bits(product: "Callable[..., torch.Tensor]") -> "Callable[..., torch.Tensor]":
    """As `in_32_bits`, some rows of a frozen weight at a time: an output head's copy would be larger than a layer."""
    import torch

    whole = in_32_bits(product)

    @functools.wraps(product)
    def wide(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if weight.requires_grad or weight.numel() <= PART or not _is_half(weight):
            return whole(rows, weight, bias)
        out = torch.cat([whole(rows, part) for part in weight.split(PART // weight.shape[1])], dim=-1)
        return out if bias is None else out + bias

    return wide


def grouped_in_32_bits(product: "Callable[..., torch.Tensor]") -> "Callable[..., torch.Tensor]":
    """As `in_32_bits`, an expert at a time, and no expert that has no rows."""
    import torch

    @functools.wraps(product)
    def wide(rows: torch.Tensor, matrices: torch.Tensor, *, offs: torch.Tensor) -> torch.Tensor:
        if not _is_half(rows):
            return product(rows, matrices, offs=offs)
        parts = rows.split(offs.diff(prepend=offs.new_zeros(1)).tolist())
        pairs = [(part, matrix) for part, matrix in zip(parts, matrices.unbind(), strict=True) if len(part)]
        with torch.autocast("cpu", enabled=False):
            done = [(part.float() @ matrix.float()).to(rows.dtype) for part, matrix in pairs]
        return torch.cat(done) if done else rows.new_zeros(0, matrices.shape[2])

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
