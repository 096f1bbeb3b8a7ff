"""Products of rows that are sorted by expert with that expert's own matrix: one call for all experts of a layer."""

from functools import cached_property

import torch
from torch.nn import functional

# Cards (the first number of their compute capability) on which torch multiplies groups in one kernel: Hopper's, and
# Blackwell's of data centres. On others, before and after them, it waits for the GPU and multiplies one group after
# another: 128 times a product in Qwen3.
GROUPED_KERNELS = (9, 10)
# Padding may multiply as many rows as this for each that is there; groups more uneven than that go one by one.
MOST_PADDING = 8
# Bytes that padded rows may take: in training some five copies of them are held at a time, which the plans' slack is
# for. Larger groups go one by one; where the limit is fastest was not measured.
PADDED = 2**27


def pads(device: torch.device) -> bool:
    """Whether groups are padded to one size and multiplied as a batch on this device."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] not in GROUPED_KERNELS


class Groups:
    """Where each expert's rows end: `ends[e]` is one past the last row of expert e, (experts,) int32."""

    def __init__(self, ends: torch.Tensor, rows: int, *, padded: bool | None = None) -> None:
        self.ends, self.rows = ends, rows
        self._padded = pads(ends.device) if padded is None else padded

    def product(self, rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        """Each of the rows, (rows, in), times its expert's of the matrices, (experts, in, out): (rows, out)."""
        if self._padded and self._pays(max(rows.shape[1], matrices.shape[2]) * rows.element_size()):
            padded = rows.new_zeros(len(self.ends), self._most, rows.shape[1]).index_put_(self._places, rows)
            return torch.bmm(padded, matrices)[self._places]
        return functional.grouped_mm(rows, matrices, offs=self.ends)

    def _pays(self, row_bytes: int) -> bool:
        """Whether padded rows of so many bytes are few enough: large groups are worth a product of their own."""
        padded = self._most * len(self.ends)
        return padded <= MOST_PADDING * self.rows and padded * row_bytes <= PADDED

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
