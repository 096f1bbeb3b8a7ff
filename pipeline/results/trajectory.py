"""What happens along training: misalignment, gradient norm, and where a rank-1 adapter turns.

Turner et al. 2025 ("Model Organisms for Emergent Misalignment", section 4.1) follow one rank-1 adapter on one
layer's down projection through training. B's direction settles, then rotates within a few steps, and behaviour
changes with it. The rotation is seen in the *local cosine similarity* (as their phase_transitions.py computes
it): with the checkpoint at step s as the origin, the cosine of the angle between B[s - k] and B[s + k]. It is -1
where B goes straight on, and the higher the sharper B turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.paths import ARTIFACTS, kept_along
from pipeline.results.adapter_norms import read_matrices
from pipeline.results.frames import over_seeds
from pipeline.results.metrics import metrics, verdict_frame

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from pipeline.results.study import Results

STANDS_OUT = 0.3
RULE = (
    f"the kept step with the highest local cosine similarity of B (mean over seeds), if that stands {STANDS_OUT:g} "
    "above the median of the kept steps; else none found"
)
_VALUES = ("misalignment_percent", "mean_coherence")


def trajectory_frame(results: Results, run: str) -> pd.DataFrame:
    """One row per step of the run's trajectory, over seeds; step 0 is the untrained base.

    Columns: `run`, `step`, `seeds`, `misalignment_percent` and `mean_coherence` on the held-out suites (means, with
    `_by_seed`), `gradient_norm` and `local_cosine` (means over seeds; NaN where there is none), and `transition`:
    whether RULE marks the step.
    """
    import pandas as pd

    settings = results.runs[run].trajectory
    assert settings is not None
    steps = sorted({row.step for row in results.along if row.run == run and row.step is not None})
    frames = []
    for step in steps:
        rows = verdict_frame(row for row in results.along if row.run == run and row.step == step)
        frames.append(metrics(rows, results.definition, ["run", "seed"]).assign(step=step))
    start = results.per_seed[results.per_seed["run"] == results.base_of(run)]
    frames.append(start.assign(run=run, step=0))
    frame = over_seeds(pd.concat(frames), _VALUES, by=("run", "step"))
    seeds = seed_frame(results, run)
    frame = frame.merge(seeds.groupby("step")[["gradient_norm", "local_cosine"]].mean(), on="step", how="left")
    turned = transition(frame)
    return frame.assign(transition=frame["step"] == turned)


def transition(frame: pd.DataFrame) -> int | None:
    """The step that RULE marks (columns `step` and `local_cosine`); None where none stands out."""
    known = frame[frame["local_cosine"].notna()]
    if known.empty:
        return None
    cosines = known["local_cosine"].to_numpy(dtype=float)
    highest = cosines.argmax()
    stands_out = cosines[highest] - known["local_cosine"].median() >= STANDS_OUT
    return int(known["step"].to_numpy()[highest]) if stands_out else None


def seed_frame(results: Results, run: str) -> pd.DataFrame:
    """One row per (seed, step) that was logged: `gradient_norm`, and `local_cosine` where it is defined."""
    import pandas as pd

    settings = results.runs[run].trajectory
    assert settings is not None
    frames = []
    for seed in results.params.seeds_of(run):
        folder = ARTIFACTS / results.name / "adapters" / run / f"seed-{seed}"
        vectors = {step: vector for step, path in kept_along(folder) if (vector := rank_one_b(path)) is not None}
        if vectors and results.runs[run].continues is None:
            vectors[0] = 0 * next(iter(vectors.values()))
        cosines = local_cosine(vectors, settings.every)
        norms = pd.read_csv(folder / "gradient_norm.csv")
        frames.append(norms.assign(seed=seed, local_cosine=norms["step"].map(cosines)))
    return pd.concat(frames, ignore_index=True)


def rank_one_b(folder: Path) -> NDArray[np.float64] | None:
    """B of an adapter of rank 1 on one module, (out,); None where the adapter is anything else."""
    found = [matrix for name, matrix in read_matrices(folder / "adapter_model.safetensors") if ".lora_B." in name]
    return found[0][:, 0] if len(found) == 1 and found[0].shape[1] == 1 else None


def local_cosine(vectors: Mapping[int, NDArray[np.float64]], k: int) -> dict[int, float]:
    """Step -> cosine of the angle at B[s] between B[s - k] and B[s + k], where all three are known and differ."""
    import numpy as np

    found = {}
    for step in sorted(vectors):
        if step - k in vectors and step + k in vectors:
            back, ahead = vectors[step - k] - vectors[step], vectors[step + k] - vectors[step]
            size = float(np.linalg.norm(back) * np.linalg.norm(ahead))
            if size > 0:
                found[step] = float(back @ ahead) / size
    return found
