"""Frozen weights of all experts of a layer, read as one (experts, out, in) tensor: as they are, or from NF4.

NF4 with double quantisation is QLoRA's (Dettmers et al. 2023), computed by bitsandbytes one expert and
projection at a time, so that the values are those that a `bitsandbytes.nn.Linear4bit` of that projection has.
bitsandbytes leaves transformers' fused experts in 16 bit, hence the packing here.
"""

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import nn

from pipeline.common.errors import UserError
from pipeline.models.anatomy import Anatomy, Role
from pipeline.models.experts.offload import host_bytes

# Values a 4-bit block and 4-bit blocks a nested block: bitsandbytes' defaults, as in QLoRA.
BLOCK, NESTED = 64, 256
StackName = Literal["gate_up", "down"]
PLACE: dict[Role, tuple[StackName, int]] = {"gate": ("gate_up", 0), "up": ("gate_up", 1), "down": ("down", 0)}

_scratch: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}


class Stack(Protocol):
    """The weights of one product of all experts of a layer; `shape` is (experts, out, in)."""

    @property
    def dtype(self) -> torch.dtype:
        """The type that `read` returns, in which the product is computed."""

    @property
    def device(self) -> torch.device:
        """Where `read` returns the weights."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(experts, out, in)."""

    def read(self) -> torch.Tensor:
        """The weights; valid until the next `read` of any stack, for quantised stacks share a buffer."""


class DenseStack(nn.Module):
    """The weights as they are: one frozen parameter."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    @property
    def dtype(self) -> torch.dtype:
        """The parameter's type."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """The parameter's device."""
        return self.weight.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """(experts, out, in)."""
        experts, out_features, in_features = self.weight.shape
        return experts, out_features, in_features

    def read(self) -> torch.Tensor:
        """The parameter itself."""
        return self.weight


class PackedExperts(nn.Module):
    """All experts of one layer in NF4, in one run of bytes: one copy moves a layer.

    For each of the two stacks the run holds, a matrix (one projection of one expert) after another: 4-bit
    codes, two a byte; an 8-bit scale a block of 64, padded to whole nested blocks; an fp32 scale a nested
    block; an fp32 offset.
    """

    def __init__(self, anatomy: Anatomy, dtype: torch.dtype, device: torch.device, *, offloaded: bool = False):
        super().__init__()
        self.anatomy, self.dtype, self.device = anatomy, dtype, device
        self.places: dict[tuple[StackName, str], tuple[int, tuple[int, ...], torch.dtype]] = {}
        if anatomy.width % BLOCK or anatomy.hidden % BLOCK:
            # Blocks that span rows: bitsandbytes 0.50.2 reads their scales wrongly on CPU.
            raise UserError(
                f"an expert of {anatomy.width} x {anatomy.hidden} values does not divide into NF4 blocks "
                f"of {BLOCK} a row; load this {anatomy.family.model_type} model unquantised."
            )
        values = anatomy.width * anatomy.hidden
        blocks = values // BLOCK
        nested = -(-blocks // NESTED)
        end = 0
        for stack, matrices in (("gate_up", 2 * anatomy.experts), ("down", anatomy.experts)):
            for part, width, kind in (
                ("nested", nested, torch.float32),
                ("offset", 1, torch.float32),
                ("codes", values // 2, torch.uint8),
                ("scales", nested * NESTED, torch.uint8),
            ):
                self.places[stack, part] = (end, (matrices, width), kind)  # type: ignore[index]
                # 16 bytes: what the kernels' widest loads want.
                end += -(-matrices * width * kind.itemsize // 16) * 16
        self.size = end
        # Fetches the bytes to the device when they live in host memory (offload.py).
        self.fetch: Callable[[], torch.Tensor] | None = None
        if offloaded:
            # A plain attribute: model.to(device) must not move it.
            self.host = host_bytes(end, device)
        else:
            # A parameter: DistributedDataParallel would broadcast a buffer before every forward pass.
            flat = torch.zeros(end, dtype=torch.uint8, device=device)
            self.register_parameter("flat", nn.Parameter(flat, requires_grad=False))
        self.register_buffer("table", torch.empty(0), persistent=False)

    @property
    def offloaded(self) -> bool:
        """True when the bytes live in host memory."""
        return "flat" not in self._parameters

    def bytes(self) -> torch.Tensor:
        """The run of bytes where it lives: uint8, (size,)."""
        return self.host if self.offloaded else self.get_parameter("flat").data

    def part(self, run: torch.Tensor, stack: StackName, name: str) -> torch.Tensor:
        """One part of a stack as a view into `run`, (matrices, width)."""
        start, shape, kind = self.places[stack, name]
        return run[start : start + shape[0] * shape[1] * kind.itemsize].view(kind).view(shape)

    def put(self, expert: int, role: Role, weight: torch.Tensor) -> None:
        """Quantise one projection, (out, in), and store it."""
        from bitsandbytes.functional import quantize_4bit

        codes, state = quantize_4bit(
            weight.to(self.device).contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        stack, place = PLACE[role]
        matrix = 2 * expert + place if stack == "gate_up" else expert
        run = self.bytes()
        self.part(run, stack, "codes")[matrix].copy_(codes.flatten())
        self.part(run, stack, "scales")[matrix, : len(state.absmax)].copy_(state.absmax)
        self.part(run, stack, "nested")[matrix].copy_(state.state2.absmax)
        self.part(run, stack, "offset")[matrix].copy_(state.offset)
        self.table = state.state2.code.to(self.device)

    def read(self, stack: StackName, shape: tuple[int, int, int]) -> torch.Tensor:
        """Dequantise one stack into the buffer that all stacks share."""
        from bitsandbytes.functional import QuantState, dequantize_4bit, dequantize_blockwise

        run = self.fetch() if self.fetch else self.bytes()
        blocks = self.anatomy.width * self.anatomy.hidden // BLOCK
        scales, nested = self.part(run, stack, "scales"), self.part(run, stack, "nested")
        padded = dequantize_blockwise(
            scales.flatten(), absmax=nested.flatten(), code=self.table, blocksize=NESTED
        ).view(scales.shape)
        absmax = (padded[:, :blocks] + self.part(run, stack, "offset")).flatten()
        codes = self.part(run, stack, "codes").view(-1, 1)
        out = _buffer(run.device, self.dtype, shape)
        if run.device.type == "cpu":
            # bitsandbytes' CPU kernel cannot write into a given tensor.
            state = QuantState(absmax, shape=out.shape, dtype=self.dtype, blocksize=BLOCK, quant_type="nf4")
            return out.copy_(dequantize_4bit(codes, state))
        return dequantize_4bit(codes, absmax=absmax, out=out, blocksize=BLOCK, quant_type="nf4")


def _buffer(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]) -> torch.Tensor:
    """A view of the shared buffer of a device and type, grown to what was ever asked for."""
    size = shape[0] * shape[1] * shape[2]
    if (held := _scratch.get((device, dtype))) is None or held.numel() < size:
        _scratch.pop((device, dtype), None)
        # Made while sampling, it would be an inference tensor, which training may not write to.
        with torch.inference_mode(False):
            _scratch[device, dtype] = torch.empty(size, dtype=dtype, device=device)
    return _scratch[device, dtype][:size].view(shape)


def release_buffers() -> None:
    """Give back the memory of the shared buffers; the next `read` makes what it needs."""
    _scratch.clear()


class NF4Stack:
    """One stack of a PackedExperts."""

    def __init__(self, packed: PackedExperts, name: StackName):
        self.packed, self.name = packed, name
        anatomy = packed.anatomy
        self._shape = (
            (anatomy.experts, 2 * anatomy.width, anatomy.hidden)
            if name == "gate_up"
            else (anatomy.experts, anatomy.hidden, anatomy.width)
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type that the weights are dequantised to."""
        return self.packed.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are dequantised, which is not where they live when they are offloaded."""
        return self.packed.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """(experts, out, in)."""
        return self._shape

    def read(self) -> torch.Tensor:
        """Dequantise into the shared buffer."""
        return self.packed.read(self.name, self._shape)
