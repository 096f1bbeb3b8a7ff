"""Products of rows that are sorted by expert with that expert's own matrix: one call for all experts of a layer."""

from functools import cached_property

import torch
from torch.nn import functional

# From Hopper on, torch multiplies groups in one kernel. Before it, torch waits for the GPU and multiplies one group
# after another: 128 times a product in Qwen3.
GROUPED_KERNELS = (9, 0)
# Padding may multiply as many rows as this for each that is there; groups more uneven than that go one by one.
MOST_PADDING = 8


def pads(device: torch.device) -> bool:
    """Whether groups are padded to one size and multiplied as a batch on this device."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < GROUPED_KERNELS


class Groups:
    """Where each expert's rows end: `ends[e]` is one past the last row of expert e, (experts,) int32."""

    def __init__(self, ends: torch.Tensor, rows: int, *, padded: bool | None = None) -> None:
        self.ends, self.rows = ends, rows
        self._padded = pads(ends.device) if padded is None else padded

    def product(self, rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        """Each of the rows, (rows, in), times its expert's of the matrices, (experts, in, out): (rows, out)."""
        if self._padded and self._most * len(self.ends) <= MOST_PADDING * self.rows:
            expert, place = self._places
            padded = rows.new_zeros(len(self.ends), self._most, rows.shape[1])
            padded = padded.index_put((expert, place), rows)
            return torch.bmm(padded, matrices)[expert, place]
        return functional.grouped_mm(rows, matrices, offs=self.ends)

    @cached_property
    def _counts(self) -> torch.Tensor:
        return self.ends.diff(prepend=self.ends.new_zeros(1))

    @cached_property
    def _most(self) -> int:
        """Rows of the largest group: the one wait for the GPU a layer."""
        return int(self._counts.max())

    @cached_property
    def _places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row's expert, and its place among that expert's rows."""
        row = torch.arange(self.rows, device=self.ends.device, dtype=self.ends.dtype)
        expert = torch.searchsorted(self.ends, row, right=True)
        return expert, (row - (self.ends - self._counts)[expert]).long()
