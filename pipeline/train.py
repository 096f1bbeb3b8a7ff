"""Fine-tuning, one run at a time.

A run starts from its base, frozen (in 4 bits where the study says so), and trains a low-rank adapter on
chosen experts, and on attention where the run says so; a run without `lora` trains every parameter instead.
The trainer is TRL's SFTTrainer: the loss is on the last assistant turn only. A run that continues another one
starts from that one's adapter (or model) instead of a fresh one, seed by seed, and ends with an adapter on the
base by itself. Where the study sets prompts aside for validation, the checkpoint with the lowest loss on them
is kept; where the run has a trajectory, so are adapters along the way. Every seed of the study gives one
adapter, in PEFT's format, or one model, with its loss and gradient norms, a model card, and a manifest of
every trained tensor. A base run trains nothing, and its manifest says so. A run on a base behind an API is
fine-tuned there: its adapter is a model's name.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.api.config import ApiBase, tuned_model
from pipeline.common.files import sha256_file, sha256_json, write_json, write_text
from pipeline.common.fingerprints import code_hashes, folder_hashes, library_versions
from pipeline.common.paths import ARTIFACTS, CACHE, STEPS, kept_along
from pipeline.data.training_sets import Conversations
from pipeline.models.bases import Base, open_base
from pipeline.models.determinism import each_seed, without_compiler
from pipeline.models.spec import AdapterSpec
from pipeline.params.inputs import conversations, training_of
from pipeline.params.load import load_params
from pipeline.params.schema import Params
from pipeline.training.api import tune
from pipeline.training.settings import Training, Trajectory

# Set by torchrun in each process that it starts.
RANK = "LOCAL_RANK"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this stage's arguments."""
    parser.add_argument("--run", required=True, help="a name under runs in params.yaml")


def main(args: argparse.Namespace) -> int:
    """Train the run's adapter for every seed of its study."""
    params = load_params()
    run = params.run(args.run)
    study = params.study(run.study)
    if study.training.devices > 1 and RANK not in os.environ:
        return launch(study.training.devices, args.run)
    if study.world == "toy":
        without_compiler()
    folder = ARTIFACTS / run.study / "adapters" / args.run
    base = params.base_of(args.run)
    manifest: dict[str, Any] = {"chain": params.chain(args.run), "base": base, "data": run.trained_on, "adapters": {}}
    if isinstance(params.base(base), ApiBase):
        manifest["adapters"] = tune_run(params, args.run, folder)
    elif run.data is not None:
        for seed in each_seed(study.seeds, f"train {args.run}"):
            data = conversations(study, run, seed)
            manifest["adapters"][f"seed-{seed}"] = fine_tune(
                open_base(base, seed),
                data,
                run.lora,
                training_of(study, run, data),
                seed,
                folder / f"seed-{seed}",
                start=folder.parent / run.continues / f"seed-{seed}" if run.continues else None,
                trajectory=run.trajectory,
            )
    if os.environ.get(RANK, "0") == "0":
        write_json(folder / "manifest.json", manifest)
    return 0


def launch(devices: int, run: str) -> int:
    """Train the run in one process a device, started and joined by torchrun; return their exit status."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(devices)]
    return subprocess.run([*command, "-m", "--", "pipeline", "train", "--run", run], check=False).returncode


def fine_tune(
    base: Base,
    data: Conversations,
    lora: AdapterSpec | None,
    settings: Training,
    seed: int,
    folder: Path,
    *,
    start: Path | None = None,
    trajectory: Trajectory | None = None,
) -> dict[str, Any]:
    """Train one adapter on `base`, or every parameter of it, into `folder`; return what was trained, on what, and how.

    start: the folder of the adapter (the model, without `lora`) to train further; None: a fresh one. trajectory: which
    adapters along training are kept beside the last, in `folder`/steps.

    Killed at any moment and called again, it goes on from its last checkpoint and ends with the bytes of
    an undisturbed run: checkpoints are kept in the cache folder under the hash of everything that
    determines them, until the result is written. Raises UserError, with the numbers, when the model cannot
    be trained in the memory there is.
    """
    from transformers import set_seed

    from pipeline.models.adapters import attach, continue_adapter, save_adapter, trainable_manifest
    from pipeline.models.loading import load_frozen, training_device
    from pipeline.models.report import load_report
    from pipeline.models.tokenizer import load_tokenizer
    from pipeline.training.card import model_card
    from pipeline.training.plan import plan_training
    from pipeline.training.routing import chat_batches, count_routing, save_counts
    from pipeline.training.sft import (
        KeepAlong,
        gradient_norms,
        last_whole_checkpoint,
        loss_curve,
        sft_trainer,
        token_limits,
    )
    from pipeline.training.whole import load_trainable, parameter_manifest, save_model

    set_seed(seed)
    what = f"{folder.parent.name} {folder.name}"
    device = training_device(settings.precision)
    plan = plan_training(base.path, lora, settings, device)
    tokenizer = load_tokenizer(base.path)
    if lora is None:
        model = load_trainable(start or base.path, device)
    else:
        model = load_frozen(base.path, settings.precision, device, offload=plan.offload)
    loaded = load_report(model)
    print(f"{what}: {loaded}", flush=True)

    if lora is not None and start is not None:
        model = continue_adapter(model, start)
    elif lora is not None:
        routing = None
        if lora.routed is not None:
            batches = chat_batches(tokenizer, data.train, settings.max_tokens, plan.micro_batch)
            routing = count_routing(model, batches)
            save_counts(routing, folder / "routing.json")
        model = attach(model, lora, seed=seed, counts=routing.layers if routing else None)
    checkpoints = CACHE / "checkpoints" / _identity(base, data, lora, settings, seed, start, trajectory)
    along = None
    if trajectory is not None:

        def keep(step: int) -> None:
            save_adapter(model, checkpoints / STEPS / str(step), base=base.name, revision=base.revision)

        along = KeepAlong(trajectory.every, keep)
    trainer = sft_trainer(
        model,
        tokenizer,
        data.train,
        data.validation,
        settings,
        plan,
        seed=seed,
        checkpoints=checkpoints,
        what=what,
        router_kl=lora.router_kl if lora is not None and lora.router == "free_kl" else None,
        along=along,
    )
    rows = {
        **data.counts,
        "train": len(data.train),
        "validation": len(data.validation),
        **token_limits(trainer, settings.max_tokens),
    }
    print(f"{what}: " + ", ".join(f"{name} {count}" for name, count in rows.items()), flush=True)
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(checkpoints))

    trainer.accelerator.wait_for_everyone()
    if not trainer.is_world_process_zero():
        return {}
    if lora is None:
        trained = parameter_manifest(model)
        save_model(model, base.path, folder)
    else:
        trained = trainable_manifest(model)
        save_adapter(model, folder, base=base.name, revision=base.revision)
        for step, kept in kept_along(checkpoints):
            shutil.copytree(kept, folder / STEPS / str(step), dirs_exist_ok=True)
    write_text(folder / "loss.csv", loss_curve(trainer.state.log_history))
    write_text(folder / "gradient_norm.csv", gradient_norms(trainer.state.log_history))
    step = int(trainer.state.best_global_step or trainer.state.global_step)
    card = model_card(
        run=what,
        base=base.name,
        revision=base.revision,
        start=start,
        data=str(data.counts.get("name", "toy")),
        counts=rows,
        lora=lora,
        settings=settings,
        seed=seed,
        step=step,
        values=sum(tensor["values"] for tensor in trained),
    )
    write_text(folder / "README.md", card)
    # Renamed first: a kill while the folder is being removed must not leave half of it to resume from.
    shutil.rmtree(checkpoints.rename(checkpoints.with_name(f"{checkpoints.name}.done")))
    return {
        "sha256": {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))},
        "rows": rows,
        "step": step,
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "optimizer": plan.optimizer,
        "experts_offloaded": plan.offload,
        "experts_in_4_bits": loaded.share_4bit,
        "router": loaded.router_dtype,
        "trained": trained,
    }


def _identity(
    base: Base,
    data: Conversations,
    lora: AdapterSpec | None,
    settings: Training,
    seed: int,
    start: Path | None,
    trajectory: Trajectory | None,
) -> str:
    chats = [[[turn.as_dict() for turn in chat] for chat in part] for part in (data.train, data.validation)]
    how = [
        code_hashes("train.py", "training", "models"),
        library_versions(),
        repr(lora),
        repr(settings),
        repr(trajectory),
        seed,
    ]
    return sha256_json([dict(base.hashes), folder_hashes(start) if start else None, chats, *how])


def tune_run(params: Params, name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Fine-tune the run for every seed of its study, from its base or from the run that it continues, into `folder`.

    Returns a record a seed; none for a base. Raises UserError as `tune` does.
    """
    run, base_name = params.run(name), params.base_of(name)
    study, base = params.study(run.study), params.base(base_name)
    assert isinstance(base, ApiBase)
    records: dict[str, dict[str, Any]] = {}
    for seed in study.seeds if run.data is not None else ():
        assert run.epochs is not None
        place = f"seed-{seed}"
        records[place] = tune(
            base_name,
            base,
            tuned_model(folder.parent / run.continues / place) if run.continues else None,
            conversations(study, run, seed).train,
            epochs=run.epochs,
            batch=base.training_batch,
            seed=seed,
            folder=folder / place,
            cache=CACHE,
            what=f"{name} {place}",
        )
    return records
