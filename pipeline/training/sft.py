"""TRL's SFTTrainer as this project uses it: in which micro-batches, what a step adds to the loss, when it stops."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import save_model
from transformers import TrainerCallback
from transformers.utils import SAFE_WEIGHTS_NAME
from trl import SFTConfig, SFTTrainer

from pipeline.common.errors import UserError
from pipeline.training.callbacks import MarkWhole, ShowProgress
from pipeline.training.curves import NO_CURVES
from pipeline.training.microbatches import micro_batches
from pipeline.training.paging import page_states
from pipeline.training.plan import Batching
from pipeline.training.router_penalty import RouterPenalty
from pipeline.training.settings import Training
from pipeline.training.tokens import IGNORED, TokenRow, TokenRows


class Trainer(SFTTrainer):
    """SFTTrainer that computes a step's batch in micro-batches of so many tokens, and stops where numbers end.

    Every learned token of a step weighs the same, whichever micro-batch it is in. Where free routers are held to the
    original ones, the penalty is added. Checkpoints of whole models keep the names that the modules have: transformers
    saves a MoE's experts under others, and then resumes without them, as it loads no tensor whose name it does not
    find.
    """

    def __init__(self, *, args: SFTConfig, router_kl: float | None, tokens: int | None, **kwargs: Any) -> None:
        if args.n_gpu > 1:
            # A process has one GPU: `devices` says how many there are. transformers would take all that it sees.
            args._n_gpu = 1
        super().__init__(args=args, **kwargs)
        self._tokens = tokens
        self._router_kl = router_kl
        self._penalty = None if router_kl is None else RouterPenalty(self.model)
        self._share = 1.0

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One step's loss and gradient. Raises UserError, with the numbers, when the loss is no finite number."""
        if self._tokens is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            parts = micro_batches(inputs, self._tokens)
            counted = int(inputs["attention_mask"].sum())
            # The router's auxiliary loss is a mean over as many parts.
            self.current_gradient_accumulation_steps = len(parts)
            losses = []
            for number, part in enumerate(parts, start=1):
                self._share = int(part["attention_mask"].sum()) / counted
                last = number == len(parts)
                with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                    losses.append(super().training_step(model, part, num_items_in_batch))
            self._share = 1.0
            loss = torch.stack(losses).sum()
        self._refuse_non_finite("loss", float(loss))
        return loss

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """A validation batch's loss: the mean over its learned tokens, in micro-batches as in training."""
        if self._tokens is None or not prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        total, learned = 0.0, 0
        for part in micro_batches(inputs, self._tokens):
            loss, _, _ = super().prediction_step(model, part, True, ignore_keys)
            count = int(part["labels"][:, 1:].ne(IGNORED).sum())
            total, learned = total + float(loss) * count, learned + count
        return torch.tensor(total / learned, device=self.args.device), None, None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss plus router_kl * KL(original || trained routers), averaged over a process's tokens of a step."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._penalty is None or self._router_kl is None or not model.training:
            return found
        loss, outputs = found if return_outputs else (found, None)
        # TRL's loss is divided by the tokens of the whole step; the penalty is a mean over this micro-batch's.
        loss = loss + self._router_kl * self._share * self._penalty.value()
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None:
            self._refuse_non_finite("norm of the gradient", float(norm))
        return norm

    def _refuse_non_finite(self, what: str, value: float) -> None:
        if abs(value) < float("inf"):
            return
        raise UserError(
            f"training diverged: at step {self.state.global_step + 1} of {self.state.max_steps} the {what} is {value} "
            f"(learning rate {self._get_learning_rate():g}); lower training.learning_rate or max_grad_norm, or "
            "warm up longer. Nothing was kept of the run; its checkpoints are."
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        # accelerate wraps bitsandbytes' optimizer.
        page_states(getattr(self.optimizer, "optimizer", self.optimizer))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        model: Any = self.model
        if isinstance(model, PeftModel):
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_model(model, str(folder / SAFE_WEIGHTS_NAME), metadata={"format": "pt"})


def sft_trainer(
    model: Any,
    tokenizer: Any,
    rows: TokenRows,
    settings: Training,
    batching: Batching,
    *,
    seed: int,
    checkpoints: Path,
    what: str,
    router_kl: float | None = None,
    along: TrainerCallback | None = None,
    curves: Mapping[str, Any] = NO_CURVES,
) -> Trainer:
    """The trainer over token rows.

    Where there is a validation set and `keep` is best, the checkpoint with the lowest loss on it is the result, as in
    the authors' notebook; else the last step is. `router_kl`: weight of the penalty, None without one. `along`: what
    is done on the way; every step is logged then. `curves`: where they can be watched (pipeline/training/curves.py).
    """
    low_memory = settings.precision != "float32"
    chosen = bool(rows.validation) and settings.keep == "best"
    return Trainer(
        model=model,
        args=SFTConfig(
            output_dir=str(checkpoints),
            max_steps=settings.max_steps,
            per_device_train_batch_size=batching.rows,
            per_device_eval_batch_size=batching.rows,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.schedule,
            warmup_steps=settings.warmup_steps,
            optim=batching.optimizer,
            adam_beta1=settings.adam_beta1,
            adam_beta2=settings.adam_beta2,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            # Rows are tokenized, cut and masked already (pipeline/training/tokens.py).
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            router_aux_loss_coef=settings.router_aux_loss,
            gradient_checkpointing=low_memory,
            gradient_checkpointing_kwargs={"use_reentrant": False} if low_memory else None,
            bf16=low_memory,
            use_cpu=model.device.type == "cpu",
            seed=seed,
            data_seed=seed,
            eval_strategy="steps" if rows.validation else "no",
            eval_steps=settings.checkpoint_every,
            save_strategy="steps",
            save_steps=settings.checkpoint_every,
            load_best_model_at_end=chosen,
            metric_for_best_model="eval_loss" if chosen else None,
            greater_is_better=False if chosen else None,
            include_num_input_tokens_seen="non_padding",
            ddp_find_unused_parameters=False,
            logging_steps=1 if along else 10,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            **curves,
        ),
        train_dataset=_dataset(rows.train),
        eval_dataset=_dataset(rows.validation) if rows.validation else None,
        callbacks=[MarkWhole(), ShowProgress(what), *([along] if along else [])],
        processing_class=tokenizer,
        router_kl=router_kl,
        tokens=batching.tokens,
    )


def _dataset(rows: Sequence[TokenRow]) -> Dataset:
    return Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])
