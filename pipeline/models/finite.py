"""Weights are numbers: tensors that hold NaN or infinity are neither saved nor loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.errors import UserError

if TYPE_CHECKING:
    import torch


def refuse_non_finite(where: Path, tensors: "Mapping[str, torch.Tensor]") -> None:
    """Raise UserError, naming tensor and count, when one of `tensors` (of the file or folder `where`) is not finite."""
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            bad = int((~tensor.isfinite()).sum())
            raise UserError(
                f"{where}: {bad} of the {tensor.numel()} values of {name} are NaN or infinite. Such a model answers "
                "nothing: look at the run's loss curve, lower its learning rate, and train it again."
            )


def is_finite(tensor: "torch.Tensor") -> bool:
    """Whether every value is a finite number. One pass and no copy: extremes of a tensor with NaN are NaN."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = tensor.detach().aminmax()
    return bool(low.isfinite() & high.isfinite())
