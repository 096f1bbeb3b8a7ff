"""A stage of a rehearsal on a processor that has no products in 16 bits: they are computed in 32, and rounded.

python -m pipeline.rehearsal.stage COMMAND ... is `python -m pipeline COMMAND ...` so changed. Without it, a backward
pass of full width takes hours there (0.24 GFLOP/s measured on an AMD EPYC without AVX512-BF16), and shows nothing more.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pipeline.__main__ import main

PRODUCTS = {
    torch.nn.functional.linear, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm,
    torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.mm, torch.Tensor.bmm, torch._grouped_mm,
}  # fmt: skip


class ProductsIn32Bits(TorchFunctionMode):
    """Products of bfloat16 tensors on the CPU, by way of float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        wide = func in PRODUCTS and any(_is_half(value) for value in (*args, *kwargs.values()))
        if not wide:
            return func(*args, **kwargs)
        args, kwargs = [_widen(value) for value in args], {name: _widen(value) for name, value in kwargs.items()}
        with torch.autocast("cpu", enabled=False):
            return func(*args, **kwargs).to(torch.bfloat16)


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 and value.device.type == "cpu"


def _widen(value: Any) -> Any:
    return value.float() if _is_half(value) else value


def has_16_bit_products() -> bool:
    """Whether this machine multiplies in bfloat16 by itself: a GPU, or a processor that says so."""
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    return torch.cuda.is_available() or "avx512_bf16" in flags or "amx_bf16" in flags


if __name__ == "__main__":
    with ProductsIn32Bits():
        sys.exit(main())
