"""Kernels that processors share: what is chosen, when it is too late, and that products and roots are right."""

import os
import subprocess
import sys

import pytest

from pipeline.common import numerics
from pipeline.common.numerics import kernels, pin_kernels, use_common_kernels


def test_a_processor_without_avx2_is_not_told_to_use_it(monkeypatch):
    monkeypatch.setattr(numerics, "has_avx2", lambda: False)
    assert "ATEN_CPU_CAPABILITY" not in kernels()
    monkeypatch.setattr(numerics, "has_avx2", lambda: True)
    assert kernels()["ATEN_CPU_CAPABILITY"] == "avx2" and kernels()["MKL_CBWR"] == "COMPATIBLE"


def test_libraries_take_what_is_chosen():
    if not numerics.has_avx2():
        pytest.skip("this processor has no AVX2")
    script = (
        "from pipeline.common.numerics import pin_kernels; pin_kernels(); import torch; "
        "print(torch.backends.cpu.get_cpu_capability()); torch.rand(64, 64) @ torch.rand(64, 64)"
    )
    environment = os.environ | {"MKL_VERBOSE": "1", "MKL_CBWR": "AUTO", "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("AVX2\n") and "CNR:COMPATIBLE" in done.stdout


def test_kernels_cannot_be_chosen_after_torch_has_chosen(monkeypatch):
    import torch  # noqa: F401

    pin_kernels()  # as it is pinned already
    monkeypatch.setattr(numerics, "_PINNED", {})
    monkeypatch.setenv("MKL_CBWR", "AUTO")
    with pytest.raises(RuntimeError, match="torch was imported before"):
        pin_kernels()


def test_products_and_their_gradients_are_right():
    import torch

    use_common_kernels()
    torch.manual_seed(0)
    left, right = torch.rand(13, 7, requires_grad=True), torch.rand(7, 5, requires_grad=True)
    # einsum's way is bmm, which torch itself does.
    expected = torch.einsum("bmk,bkn->bmn", left[None], right[None])[0]
    assert torch.allclose(left @ right, expected, atol=1e-6)
    found = torch.autograd.grad((left @ right).square().sum(), [left, right])
    wanted = torch.autograd.grad(expected.square().sum(), [left, right])
    for gradient, right_one in zip(found, wanted, strict=True):
        assert torch.allclose(gradient, right_one, atol=1e-5)
    small = left.detach().to(torch.bfloat16)
    assert torch.equal(small @ small.T, torch.addmm(torch.zeros(13, 13, dtype=torch.bfloat16), small, small.T))
    assert (torch.rand(2, 0) @ torch.rand(0, 3)).tolist() == [[0.0] * 3] * 2


def test_grouped_products_and_their_gradients_are_right():
    import torch

    use_common_kernels()
    torch.manual_seed(0)
    tokens, weights = torch.rand(20, 8, requires_grad=True), torch.rand(3, 8, 4, requires_grad=True)
    ends = torch.tensor([5, 5, 20], dtype=torch.int32)  # the second expert gets no token
    found = torch._grouped_mm(tokens, weights, offs=ends)
    slices = zip([0, *ends], ends, weights, strict=False)
    expected = torch.cat([tokens[start:end] @ weight for start, end, weight in slices])
    assert torch.allclose(found, expected, atol=1e-6)
    for gradient, right_one in zip(
        torch.autograd.grad(found.square().sum(), [tokens, weights]),
        torch.autograd.grad(expected.square().sum(), [tokens, weights]),
        strict=True,
    ):
        assert torch.allclose(gradient, right_one, atol=1e-5)


def test_square_roots_are_rounded_as_ieee_says():
    import math

    import torch

    use_common_kernels()
    values = torch.rand(1000, dtype=torch.float64) * 100
    assert torch.sqrt(values).tolist() == [math.sqrt(value) for value in values.tolist()]
    assert torch.sqrt(torch.tensor([4, 9])).tolist() == [2.0, 3.0]
