"""What is done along training: checkpoints are marked and dropped, adapters kept, progress shown."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm
from transformers import TrainerCallback

from pipeline.training.checkpoints import WHOLE, drop_checkpoints


class MarkWhole(TrainerCallback):
    """Leave a mark in a checkpoint once all of it is written, by every process; then drop those before it."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after this process's last file of a checkpoint."""
        PartialState().wait_for_everyone()
        newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (newest / WHOLE).touch()
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            drop_checkpoints(newest.parent, keep={newest.name, Path(state.best_model_checkpoint or newest).name})


class KeepAlong(TrainerCallback):
    """Do `keep(step)` at these optimizer steps, before the step's checkpoint is written."""

    def __init__(self, steps: range, keep: Callable[[int], None]) -> None:
        self._steps, self._keep = steps, keep

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One optimizer step is done."""
        if state.global_step in self._steps and state.is_world_process_zero:
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
