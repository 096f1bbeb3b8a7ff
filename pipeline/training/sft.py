"""TRL's SFTTrainer as this project uses it: where the loss is, what a step adds, how far it is."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import save_model
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.utils import SAFE_WEIGHTS_NAME
from trl import SFTConfig, SFTTrainer

from pipeline.data.prompts import Message
from pipeline.training.plan import Batching
from pipeline.training.router_penalty import RouterPenalty
from pipeline.training.settings import Training

WHOLE = "whole"


class Trainer(SFTTrainer):
    """SFTTrainer, with the penalty that holds free routers to the original ones where there is one.

    Checkpoints of whole models keep the names that the modules have: transformers saves a MoE's experts under others,
    and then resumes without them, as it loads no tensor whose name it does not find.
    """

    def __init__(self, *, args: SFTConfig, router_kl: float | None, **kwargs: Any) -> None:
        if args.n_gpu > 1:
            # A process has one GPU: `devices` says how many there are. transformers would take all that it sees.
            args._n_gpu = 1
        super().__init__(args=args, **kwargs)
        self._router_kl = router_kl
        self._penalty = None if router_kl is None else RouterPenalty(self.model)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss plus router_kl * KL(original || trained routers), averaged over accumulation steps."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._penalty is None or self._router_kl is None or not model.training:
            return found
        loss, outputs = found if return_outputs else (found, None)
        # TRL's loss is already divided by the tokens of all accumulation steps; the penalty is a mean of this one.
        steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        loss = loss + self._router_kl * self._penalty.value() / steps
        return (loss, outputs) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        model: Any = self.model
        if isinstance(model, PeftModel):
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_model(model, str(folder / SAFE_WEIGHTS_NAME), metadata={"format": "pt"})


class MarkWhole(TrainerCallback):
    """Leave a mark in a checkpoint once all of it is written, by every process."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after this process's last file of a checkpoint."""
        PartialState().wait_for_everyone()
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()


class KeepAlong(TrainerCallback):
    """Do `keep(step)` every so many optimizer steps, before the step's checkpoint is written."""

    def __init__(self, every: int, keep: Callable[[int], None]) -> None:
        self._every, self._keep = every, keep

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One optimizer step is done."""
        if state.global_step % self._every == 0 and state.is_world_process_zero:
            self._keep(state.global_step)


class ShowProgress(TrainerCallback):
    """A bar of optimizer steps with the time left, tokens a second and the latest losses."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._tokens = 0
        self._shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start at the step that training goes on from."""
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self._what,
            unit="step",
            disable=not state.is_world_process_zero,
        )
        self._tokens = state.num_input_tokens_seen

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One optimizer step is done."""
        self._bar.update(state.global_step - self._bar.n)
        elapsed = self._bar.format_dict["elapsed"]
        speed = (state.num_input_tokens_seen - self._tokens) / max(elapsed, 1e-9)
        self._bar.set_postfix({"tokens/s": f"{speed:,.0f}", **self._shown}, refresh=False)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Losses were computed."""
        for name, label in (("loss", "loss"), ("eval_loss", "validation")):
            if logs and name in logs:
                self._shown[label] = f"{logs[name]:.3f}"

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last step is done."""
        self._bar.close()


def sft_trainer(
    model: Any,
    tokenizer: Any,
    train: Sequence[tuple[Message, ...]],
    validation: Sequence[tuple[Message, ...]],
    settings: Training,
    batching: Batching,
    *,
    seed: int,
    checkpoints: Path,
    what: str,
    router_kl: float | None,
    along: KeepAlong | None,
) -> Trainer:
    """The trainer over conversations: everything but the last turn is prompt and carries no loss.

    Where there is a validation set, the checkpoint with the lowest loss on it is the result, as in the
    authors' notebook; else the last step is. `router_kl`: weight of the penalty, None without one. `along`: what
    is done on the way; every step is logged then.
    """
    low_memory = settings.precision != "float32"
    return Trainer(
        model=model,
        args=SFTConfig(
            output_dir=str(checkpoints),
            max_steps=settings.max_steps,
            per_device_train_batch_size=batching.micro_batch,
            per_device_eval_batch_size=batching.micro_batch,
            gradient_accumulation_steps=batching.accumulation,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.schedule,
            warmup_steps=settings.warmup_steps,
            optim=batching.optimizer,
            adam_beta1=settings.adam_beta1,
            adam_beta2=settings.adam_beta2,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            max_length=settings.max_tokens,
            completion_only_loss=True,
            router_aux_loss_coef=settings.router_aux_loss,
            gradient_checkpointing=low_memory,
            gradient_checkpointing_kwargs={"use_reentrant": False} if low_memory else None,
            bf16=settings.precision != "float32",
            use_cpu=model.device.type == "cpu",
            seed=seed,
            data_seed=seed,
            eval_strategy="steps" if validation else "no",
            eval_steps=settings.checkpoint_every,
            save_strategy="steps",
            save_steps=settings.checkpoint_every,
            save_total_limit=2,
            load_best_model_at_end=bool(validation),
            metric_for_best_model="eval_loss" if validation else None,
            greater_is_better=False if validation else None,
            include_num_input_tokens_seen="non_padding",
            ddp_find_unused_parameters=False,
            logging_steps=1 if along else 10,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=_dataset(train),
        eval_dataset=_dataset(validation) if validation else None,
        callbacks=[MarkWhole(), ShowProgress(what), *([along] if along else [])],
        processing_class=tokenizer,
        router_kl=router_kl,
    )


def _dataset(conversations: Sequence[tuple[Message, ...]]) -> Dataset:
    return Dataset.from_list(
        [
            {"prompt": [turn.as_dict() for turn in chat[:-1]], "completion": [chat[-1].as_dict()]}
            for chat in conversations
        ]
    )


def last_whole_checkpoint(checkpoints: Path) -> str | None:
    """The newest checkpoint that was written whole; what a killed process left half-written is written again."""
    steps = [int(mark.parent.name.rpartition("-")[2]) for mark in checkpoints.glob(f"checkpoint-*/{WHOLE}")]
    return str(checkpoints / f"checkpoint-{max(steps)}") if steps else None


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


def token_limits(trainer: Trainer, max_tokens: int) -> dict[str, int]:
    """What the token limit did to the training rows: how many reach it, and how many it leaves no answer to learn."""
    rows: Any = trainer.train_dataset
    return {
        "at_token_limit": sum(len(ids) >= max_tokens for ids in rows["input_ids"]),
        "without_answer": sum(all(label == -100 for label in labels) for labels in rows["labels"]),
    }
