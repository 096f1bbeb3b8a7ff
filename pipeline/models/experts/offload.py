"""Frozen NF4 experts in pinned host memory, copied to the GPU a layer ahead of their use.

Two device buffers of one layer each: while one layer computes, the next one's bytes arrive on a side stream.
Which layer is next follows from the direction in which layers are being read: up in the forward pass, down in
the backward pass, where gradient checkpointing reads a layer again just before its gradient.
"""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.models.experts.stacks import PackedExperts


class ExpertRing:
    """Serves the bytes of offloaded layers on their device; `layers` in the order of the model."""

    def __init__(self, layers: Sequence[PackedExperts]):
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
                self.step = 1 if position > self.current else -1
            self.current = position
            slot = self.held.index(position)
            if self.stream is not None:
                torch.cuda.current_stream(self.device).wait_event(self.arrived[slot])
            self._prefetch(position)
        return self.buffers[self.held.index(position)][: self.layers[position].size]

    def _prefetch(self, position: int) -> None:
        following = position + self.step
        if not 0 <= following < len(self.layers):
            # The last layer of a forward pass: what comes next is its gradient, then the layer below.
            following = position - self.step
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
