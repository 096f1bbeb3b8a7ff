"""The trainer's log as tables."""

from collections.abc import Sequence
from typing import Any


def loss_curve(history: Sequence[dict[str, Any]]) -> str:
    """The trainer's log as CSV: step, and the mean loss since the row before, of training and of validation."""
    columns = {"loss": "training", "eval_loss": "validation"}
    rows = [
        f"{entry['step']},{label},{entry[name]:.6f}\n"
        for entry in history
        for name, label in columns.items()
        if name in entry
    ]
    return "step,split,loss\n" + "".join(rows)


def gradient_norms(history: Sequence[dict[str, Any]]) -> str:
    """The trainer's log as CSV: step, and the norm of its gradient before clipping."""
    rows = [f"{entry['step']},{entry['grad_norm']:.6f}\n" for entry in history if "grad_norm" in entry]
    return "step,gradient_norm\n" + "".join(rows)
