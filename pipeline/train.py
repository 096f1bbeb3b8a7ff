"""Fine-tuning, one run at a time.

A run starts from its base, frozen (in 4 bits where the study says so), and trains a low-rank adapter on
chosen experts, and on attention where the run says so; a run without `lora` trains every parameter instead.
The trainer is TRL's SFTTrainer: the loss is on the last assistant turn only. A run that continues another one
starts from that one's adapter (or model) instead of a fresh one, seed by seed, and ends with an adapter on the
base by itself. A run with `active` routes a token to so many experts, in place of the base's number. Where the
study sets prompts aside for validation, the checkpoint with the lowest loss on them is kept; where the run has a
trajectory, so are adapters along the way. Every seed of the study gives one adapter, in PEFT's format, or one
model, with its loss and gradient norms, a model card, and a manifest of every trained tensor. A base run trains
nothing, and its manifest says so. A run on a base behind an API is fine-tuned there: its adapter is a model's name.
"""

import argparse
from pathlib import Path
from typing import Any

from pipeline.api.config import ApiBase, tuned_model
from pipeline.common.files import write_json
from pipeline.common.paths import ARTIFACTS, CACHE, MANIFEST, STEPS
from pipeline.models.bases import open_base
from pipeline.models.determinism import each_seed, without_compiler
from pipeline.params.inputs import conversations, own_held_out, training_of
from pipeline.params.load import load_params
from pipeline.training.api import tune
from pipeline.training.launch import forget_other_launchers, is_first, is_rank, start_ranks
from pipeline.training.task import FineTuning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this stage's arguments."""
    parser.add_argument("--run", required=True, help="a name under runs in params.yaml")


def main(args: argparse.Namespace) -> int:
    """Train the run's adapter for every seed of it."""
    params = load_params()
    run = params.run(args.run)
    study, base_name = params.study(run.study), params.base_of(args.run)
    base = params.base(base_name)
    if study.training.devices > 1 and not is_rank():
        return start_ranks(study.training.devices, args.run)
    if study.world == "toy":
        without_compiler()
    folder = ARTIFACTS / run.study / "adapters" / args.run
    adapters: dict[str, Any] = {}
    own = params.seeds_of(args.run)
    # Behind an API there is no torch to set up.
    seeds = own if isinstance(base, ApiBase) else each_seed(own, f"train {args.run}", strict=study.world == "toy")
    for seed in seeds if run.data is not None else ():
        place = f"seed-{seed}"
        data = conversations(study, run, seed)
        start = folder.parent / run.continues / place if run.continues else None
        if isinstance(base, ApiBase):
            assert run.epochs is not None
            adapters[place] = tune(
                base_name,
                base,
                tuned_model(start) if start else None,
                data.train,
                epochs=run.epochs,
                batch=base.training_batch,
                seed=seed,
                folder=folder / place,
                cache=CACHE,
                what=f"{args.run} {place}",
            )
        else:
            task = FineTuning(
                base=open_base(base_name, seed, run.active_in("training")),
                data=data,
                lora=run.lora,
                settings=training_of(study, run, data),
                seed=seed,
                start=start,
                trajectory=run.trajectory,
            )
            adapters[place] = fine_tune(task, folder / place, too_long=study.thresholds.too_long)
    manifest = {"chain": params.chain(args.run), "base": base_name, "data": run.trained_on, "adapters": adapters}
    if is_first():
        if run.active is not None:
            manifest["active"] = {stage: run.active_in(stage) for stage in ("training", "sampling")}
        if kept_out := own_held_out(study):
            manifest["kept_out"] = kept_out
        write_json(folder / MANIFEST, manifest)
    return 0


def fine_tune(task: FineTuning, folder: Path, *, too_long: float = 0.0) -> dict[str, Any]:
    """Train one adapter, or every parameter, into `folder`; return what was trained, on what, and how.

    too_long: the largest share of rows that may be longer than the token limit.

    Killed at any moment and called again, it goes on from its last checkpoint and ends with the bytes of
    an undisturbed run: checkpoints are kept in the cache folder under the hash of everything that
    determines them, until the result is written. Raises UserError, with the numbers, when too many rows are too
    long, when the model cannot be trained in the memory there is, or when training diverges.
    """
    from transformers import set_seed

    from pipeline.models.adapters import save_adapter
    from pipeline.models.loading import training_device
    from pipeline.models.tokenizer import load_tokenizer
    from pipeline.training.callbacks import KeepAlong
    from pipeline.training.checkpoints import checkpoint_folder_of, last_whole_checkpoint, remove_checkpoints
    from pipeline.training.curves import reporting
    from pipeline.training.plan import plan_training
    from pipeline.training.prepare import prepare_model
    from pipeline.training.results import save_result, write_reports
    from pipeline.training.sft import sft_trainer
    from pipeline.training.tokens import tokenize

    forget_other_launchers()
    set_seed(task.seed)
    base, lora, settings, what = task.base, task.lora, task.settings, f"{folder.parent.name} {folder.name}"
    curves = reporting(what)
    tokenizer = load_tokenizer(base.path)
    rows = tokenize(tokenizer, base.path, task.data, settings.max_tokens)
    counts = {**task.data.counts, **rows.counts}
    print(f"{what}: " + ", ".join(f"{name} {count}" for name, count in counts.items()), flush=True)
    rows.refuse_too_long(too_long)

    device = training_device(settings.precision)
    plan = plan_training(base, lora, settings, device, rows.longest)
    prepared = prepare_model(task, plan, device, tokenizer, rows)
    print(f"{what}: {prepared.loaded}", flush=True)
    checkpoints = checkpoint_folder_of(task)

    def keep(step: int) -> None:
        save_adapter(prepared.model, checkpoints / STEPS / str(step), base=base.name, revision=base.revision)

    trainer = sft_trainer(
        prepared.model,
        tokenizer,
        rows,
        settings,
        plan,
        seed=task.seed,
        checkpoints=checkpoints,
        what=what,
        router_kl=lora.router_kl if lora is not None and lora.router == "free_kl" else None,
        along=KeepAlong(task.kept, keep) if task.kept else None,
        curves=curves,
    )
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(checkpoints))
    trainer.accelerator.wait_for_everyone()
    if not trainer.is_world_process_zero():
        return {}
    trained = save_result(task, prepared, checkpoints, folder)
    record = write_reports(
        task, trained, folder, what=what, counts=counts, state=trainer.state, prepared=prepared, plan=plan
    )
    remove_checkpoints(checkpoints)
    return record
