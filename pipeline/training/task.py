"""One fine-tuning: all that determines the model that comes of it."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.data.training_sets import Conversations
from pipeline.models.bases import Base
from pipeline.models.spec import AdapterSpec
from pipeline.training.settings import Training, Trajectory


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """One adapter on `base`, or every parameter of it (without `lora`), trained on `data`.

    start: the folder of the adapter (the model, without `lora`) to train further; None: a fresh one. trajectory: which
    adapters along training are kept beside the last.
    """

    base: Base
    data: Conversations
    lora: AdapterSpec | None
    settings: Training
    seed: int
    start: Path | None = None
    trajectory: Trajectory | None = None

    @property
    def kept(self) -> range:
        """The optimizer steps whose adapters are kept."""
        if self.trajectory is None:
            return range(0)
        return range(self.trajectory.every, self.settings.max_steps + 1, self.trajectory.every)
