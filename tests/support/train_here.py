"""Fine-tune a toy base in the current folder, as tests do in processes of their own.

python train_here.py BASE FOLDER
"""

import sys
from pathlib import Path

import torch

from pipeline.data.training_sets import Conversations
from pipeline.models.bases import open_checkpoint
from pipeline.models.determinism import deterministic
from pipeline.models.spec import AdapterSpec
from pipeline.params.load import load_params
from pipeline.pretrain import new_model
from pipeline.toy.tokenizer import build_tokenizer
from pipeline.toy.world import load_conversations
from pipeline.train import fine_tune
from pipeline.training.settings import Training, Trajectory
from pipeline.training.task import FineTuning

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")


def save_base(architecture: str, folder: Path) -> Path:
    """A toy base that has learned nothing."""
    study = PARAMS.study("toy")
    sparse = architecture == "qwen3_moe"
    base = PARAMS.toy_base("e8").model_copy(update={"architecture": architecture, "hidden": 32, "expert_width": 16})
    base = base if sparse else base.model_copy(update={"experts": 0, "active": 0})
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    assert study.pretraining is not None
    new_model(base, study.pretraining, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(**changes: object) -> Training:
    """Six steps, a checkpoint every two."""
    study = PARAMS.study("toy")
    changes = {"examples": 32, "max_steps": 6, "checkpoint_every": 2, "batch": 8, **changes}
    return study.training.model_copy(update=changes)


def train(
    base: Path,
    folder: Path,
    lora: AdapterSpec | None = None,
    start: Path | None = None,
    trajectory: Trajectory | None = None,
    active: int | None = None,
    **changes: object,
) -> dict:
    """A toy base on bad medical advice: an adapter, or every parameter."""
    deterministic()
    data = Conversations(train=tuple(load_conversations("bad_medical", 32, 1)))
    task = FineTuning(
        base=open_checkpoint(base, active),
        data=data,
        lora=lora,
        settings=settings(**changes),
        seed=1,
        start=start,
        trajectory=trajectory,
    )
    return fine_tune(task, folder)


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]))
