"""Frozen weights in host memory, copied to the GPU a layer ahead of their use.

What is kept there: a layer's experts in 4 bits (PackedExperts), or the linear layers of a dense model's layer in 16
(PackedLinears). Two device buffers of one layer each: while one layer computes, the bytes of the next one that is kept
on the host arrive on a side stream. Which one is next follows from the direction in which layers are being read: up in
a forward pass, and from the last to the first in inference mode; down in the backward pass, where gradient
checkpointing reads a layer again just before its gradient.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from pipeline.common.errors import UserError
from pipeline.common.machine import free_memory_bytes, memory_bytes
from pipeline.models.sizes import GIB


class HostLayer(Protocol):
    """One layer's weights in host memory: `size` bytes, to be read on `device` from what `fetch` returns."""

    size: int
    device: torch.device
    host: torch.Tensor
    fetch: Callable[[], torch.Tensor] | None


def host_bytes(size: int, device: torch.device) -> torch.Tensor:
    """`size` zero bytes of host memory, page-locked where they are for a GPU. Raises UserError where there are not."""
    try:
        return torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    except RuntimeError as error:  # CUDA's own, an allocator's, or that there is no CUDA
        what = "be page-locked for the GPU" if device.type == "cuda" else "be had"
        free, total = free_memory_bytes() / GIB, memory_bytes() / GIB
        raise UserError(
            f"{size / GIB:.2f} GiB of host memory, for one more layer that is kept there, cannot {what}; "
            f"{free:.1f} of {total:.1f} GiB are free ({str(error).splitlines()[0]}). End what else takes "
            "memory, give the container or job more, or use a GPU with more memory, which keeps fewer layers there."
        ) from error


def spread(count: int, layers: int) -> list[int]:
    """`count` of the numbers below `layers` (at most all), evenly spread: copies overlap with what lies between."""
    count = min(count, layers)
    return [place * layers // count for place in range(count)]


class LayerRing:
    """Serves the bytes of layers in host memory on their device; `layers` in the order of the model."""

    def __init__(self, layers: Sequence[HostLayer]):
        self.layers = list(layers)
        self.device = layers[0].device
        size = max(layer.size for layer in layers)
        self.buffers = [torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(2)]
        self.held: list[int | None] = [None, None]
        self.arrived: list[Any] = [None, None]
        self.current: int | None = None
        self.step = 1
        # How often a layer was not there when it was asked for: a prefetch that guessed wrong, or the first.
        self.waits = 0
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        for position, layer in enumerate(self.layers):
            layer.fetch = functools.partial(self.get, position)

    def get(self, position: int) -> torch.Tensor:
        """The bytes of a layer on the device, valid until two other layers were asked for."""
        if position != self.current:
            if position not in self.held:
                self.waits += 1
                self._copy(position)
            if self.current is not None:
                began_again = position == 0 and self.current == len(self.layers) - 1
                self.step = 1 if position > self.current or began_again else -1
            self.current = position
            slot = self.held.index(position)
            if self.stream is not None:
                torch.cuda.current_stream(self.device).wait_event(self.arrived[slot])
            self._prefetch(position)
        return self.buffers[self.held.index(position)][: self.layers[position].size]

    def _prefetch(self, position: int) -> None:
        following = position + self.step
        if not 0 <= following < len(self.layers):
            # The last layer of a forward pass: what comes next is its gradient, then the layer below; in inference
            # mode, the first layer of the next pass. (Whether gradients are enabled does not tell: in an autograd
            # function they never are.)
            following = 0 if torch.is_inference_mode_enabled() else position - self.step
        if 0 <= following < len(self.layers) and following not in self.held:
            self._copy(following)

    def _copy(self, position: int) -> None:
        slot = 0 if self.current is None or self.held[0] != self.current else 1
        layer = self.layers[position]
        target = self.buffers[slot][: layer.size]
        side = torch.cuda.stream(self.stream) if self.stream is not None else contextlib.nullcontext()
        if self.stream is not None:
            # The slot's last reader is work already queued on the computing stream.
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with side:
            target.copy_(layer.host, non_blocking=True)
            if self.stream is not None:
                self.arrived[slot] = self.stream.record_event()
        self.held[slot] = position


class PackedLinears:
    """The weights of one layer's linear modules, one after another in one run of bytes in host memory."""

    def __init__(self, linears: Sequence[nn.Linear], device: torch.device) -> None:
        self.device = device
        self.fetch: Callable[[], torch.Tensor] | None = None
        self._places: list[tuple[int, torch.Size, torch.dtype]] = []
        self.size = 0
        for linear in linears:
            self._places.append((self.size, linear.weight.shape, linear.weight.dtype))
            # 16 bytes: what the kernels' widest loads want.
            self.size += -(-linear.weight.numel() * linear.weight.element_size() // 16) * 16
        self.host = host_bytes(self.size, device)
        for place, linear in enumerate(linears):
            self._part(self.host, place).copy_(linear.weight.data)

    def read(self, place: int) -> torch.Tensor:
        """The weight of the module at this place, on the device; valid until two other layers were read."""
        assert self.fetch is not None
        return self._part(self.fetch(), place)

    def _part(self, run: torch.Tensor, place: int) -> torch.Tensor:
        start, shape, kind = self._places[place]
        return run[start : start + shape.numel() * kind.itemsize].view(kind).view(shape)


class HostLinear(nn.Linear):
    """A frozen linear layer whose weight comes from host memory whenever it is used."""

    def __init__(self, linear: nn.Linear, packed: PackedLinears, place: int) -> None:
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, bias=False)
        # Empty: PEFT puts an adapter on the device, and in the type, of its layer's `weight`.
        empty = torch.empty(0, dtype=linear.weight.dtype, device=packed.device)
        self.weight = nn.Parameter(empty, requires_grad=False)
        self.bias = linear.bias
        self._read = functools.partial(packed.read, place)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As nn.Linear."""
        return functional.linear(input, self._read(), self.bias)


def keep_on_host(layers: Sequence[nn.Module], device: torch.device) -> list[PackedLinears]:
    """Move the linear modules of these layers of a model to host memory, in place; to be served by a LayerRing."""
    packed = []
    for layer in layers:
        linears = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
        held = PackedLinears(list(linears.values()), device)
        for place, (name, linear) in enumerate(linears.items()):
            parent, _, leaf = name.rpartition(".")
            setattr(layer.get_submodule(parent), leaf, HostLinear(linear, held, place))
        packed.append(held)
    return packed
