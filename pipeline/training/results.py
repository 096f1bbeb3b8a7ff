"""What a training leaves: the adapter or the model, adapters along the way, its losses, its model card, its record."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common.files import sha256_file, write_text
from pipeline.models.adapters import save_adapter, trainable_manifest
from pipeline.training.card import model_card
from pipeline.training.checkpoints import copy_kept
from pipeline.training.logs import gradient_norms, loss_curve
from pipeline.training.plan import Batching
from pipeline.training.prepare import Prepared
from pipeline.training.routing import save_counts
from pipeline.training.task import FineTuning
from pipeline.training.whole import parameter_manifest, save_model


def save_result(task: FineTuning, prepared: Prepared, checkpoints: Path, folder: Path) -> list[dict[str, Any]]:
    """Write the adapter (the model, without `lora`) into `folder`; return what was trained, tensor by tensor.

    What a killed process left in the folder goes first. Raises UserError when a trained value is not finite.
    """
    shutil.rmtree(folder, ignore_errors=True)
    model = prepared.model
    if task.lora is None:
        trained = parameter_manifest(model)
        save_model(model, task.base.path, folder, task.base.active)
        return trained
    save_adapter(model, folder, base=task.base.name, revision=task.base.revision)
    if prepared.routing is not None:
        save_counts(prepared.routing, folder / "routing.json")
    copy_kept(checkpoints, task.kept, folder)
    return trainable_manifest(model)


def write_reports(
    task: FineTuning,
    trained: list[dict[str, Any]],
    folder: Path,
    *,
    what: str,
    counts: Mapping[str, Any],
    state: Any,
    prepared: Prepared,
    plan: Batching,
) -> dict[str, Any]:
    """Write loss curves and model card beside what was saved; return the record of what was trained, on what, and how.

    counts: rows of the training set. state: the trainer's.
    """
    step = int(state.best_global_step or state.global_step)
    card = model_card(task, run=what, counts=counts, step=step, values=sum(tensor["values"] for tensor in trained))
    write_text(folder / "loss.csv", loss_curve(state.log_history))
    write_text(folder / "gradient_norm.csv", gradient_norms(state.log_history))
    write_text(folder / "README.md", card)
    return {
        "sha256": {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))},
        "rows": dict(counts),
        "step": step,
        "micro_batch_tokens": plan.tokens,
        "optimizer": plan.optimizer,
        "experts_offloaded": plan.offload,
        "experts_in_4_bits": prepared.loaded.share_4bit,
        "router": prepared.loaded.router_dtype,
        "trained": trained,
    }
