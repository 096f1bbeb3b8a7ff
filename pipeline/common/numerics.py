"""The numerical environment: the same kernels on every x86-64 processor with AVX2: toy results keep their bytes.

torch, MKL, oneDNN, OpenBLAS and NumPy each choose kernels by the processor that they find, and kernels differ in the
last bits. `pin_kernels` chooses for them, before torch or NumPy is imported: in every stage, however it is started
(pipeline/__main__.py), and in every test (tests/conftest.py).

MKL has one set of kernels that is the same on Intel's and AMD's processors (MKL_CBWR=COMPATIBLE; AVX2,STRICT is taken
on Intel's alone, and ignored in silence on AMD's). It is made for processors of 2001, so that a step of toy pretraining
takes 1.45 times as long, and its square roots still differ. So matrix products are OpenBLAS's, which takes its AVX2
kernels wherever it is told to (1.15 times), and square roots NumPy's, which are IEEE's (`use_common_kernels`).
`make cross-cpu` compares processors.
"""

from __future__ import annotations

import functools
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# NumPy's kernels above AVX2, which processors have or have not (numpy/_core/src/common/npy_cpu_features.c).
_NUMPY_ABOVE_AVX2 = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"
# One thread: sums in another order differ in their last bits, and the toy's matrices are too small for two to pay.
_ANYWHERE = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
_ANYWHERE |= {"MKL_CBWR": "COMPATIBLE"}
_ANYWHERE |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # without it cuBLAS is not deterministic
_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": _NUMPY_ABOVE_AVX2,
}


def kernels() -> dict[str, str]:
    """The environment variables that choose kernels here; a processor without AVX2 runs what it can."""
    return _ANYWHERE | _AVX2 if has_avx2() else _ANYWHERE


def has_avx2() -> bool:
    """Whether toy results can be had to the byte here: an x86-64 processor with AVX2 and FMA."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return True  # not Linux; every Mac that torch 2 runs on has them
    return {"avx2", "fma"} <= set(flags)


def pin_kernels() -> None:
    """Choose kernels for this process and its children. Raises RuntimeError where torch has already chosen others."""
    chosen = kernels()
    pinned = _PINNED or os.environ
    if "torch" in sys.modules and any(pinned.get(name) != value for name, value in chosen.items()):
        raise RuntimeError("torch was imported before its kernels were pinned (pipeline/common/numerics.py).")
    os.environ.update(chosen)
    _PINNED.update(chosen)


_PINNED: dict[str, str] = {}  # what torch has found, or will find: a forked stage's environment is given to it later


@functools.cache
def use_common_kernels() -> None:
    """Have NumPy, with its OpenBLAS, do torch's matrix products and square roots on the CPU, from now on."""
    import torch

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Oo]verrid", category=UserWarning)
        library.impl("mm", _product, "CPU")
        library.impl("_grouped_mm", _grouped_product, "CPU")
        library.impl("sqrt", _square_root, "CPU")
    _KEPT.append(library)  # what it replaces comes back when it is collected


_KEPT: list[torch.library.Library] = []


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(m, k) x (k, n) -> (m, n). Other types than float32 go torch's way, which `addmm` is."""
    out = left.new_empty(left.shape[0], right.shape[1])
    _multiply(left, right, out)
    return out


def _grouped_product(
    left: torch.Tensor,
    right: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Products of slices of two matrices, or of rows with one matrix a group; `offs` are where the groups end.

    (m, k) x (groups, k, n) -> (m, n), row slices with their group's matrix; (m, k) x (k, n) -> (groups, m, n), slices
    of k: the first one's gradient.
    """
    if offs is None or bias is not None or left.dim() != 2 or out_dtype not in (None, left.dtype):
        raise NotImplementedError("grouped products of this form are not used by the models here")
    ends = offs.tolist()
    rows = right.dim() == 3
    shape = (left.shape[0], right.shape[2]) if rows else (len(ends), left.shape[0], right.shape[1])
    out = left.new_zeros(shape)
    for group, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if start < end and rows:
            _multiply(left[start:end], right[group], out[start:end])
        elif start < end:
            _multiply(left[:, start:end], right[start:end], out[group])
    return out


def _square_root(values: torch.Tensor) -> torch.Tensor:
    import numpy as np
    import torch

    if values.dtype not in (torch.float32, torch.float64):
        return values.pow(0.5)
    out = torch.empty_like(values)
    np.sqrt(values.detach().numpy(), out=out.numpy())
    return out


def _multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    import numpy as np
    import torch

    if left.dtype is right.dtype is torch.float32:
        np.matmul(left.detach().numpy(), right.detach().numpy(), out=out.numpy())
    else:
        torch.addmm(out, left, right, beta=0, out=out)
