"""Adapters kept along training: which, from which steps, and what is read off them."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.common.files import sha256_file
from pipeline.common.paths import kept_along
from pipeline.models.adapters import WEIGHTS
from pipeline.models.spec import AdapterSpec
from pipeline.results.figures.trajectory import along_training
from pipeline.results.trajectory import local_cosine, rank_one_b, transition
from pipeline.training.callbacks import KeepAlong
from pipeline.training.settings import Trajectory
from tests.support.train_here import save_base, settings
from tests.support.train_here import train as train_here

ONE = AdapterSpec(rank=1, alpha=16, layers=(1,), projections=("down",))
EVERY = Trajectory(every=2, samples_per_prompt=1)


def test_the_local_cosine_is_minus_one_straight_on_and_rises_with_the_turn():
    points = {0: (0, 0), 5: (1, 0), 10: (2, 0), 15: (2, 1), 20: (2, 0), 25: (2, 0)}
    found = local_cosine({step: np.array(point, dtype=float) for step, point in points.items()}, 5)
    assert found == pytest.approx({5: -1.0, 10: 0.0, 15: 1.0})
    wider = local_cosine({step: np.array(point, dtype=float) for step, point in points.items()}, 10)
    assert wider == pytest.approx({15: 0.5**0.5}), "at step 10, B comes back to where it is"
    frame = pd.DataFrame({"step": [5, 10, 15, 20], "local_cosine": [-1.0, 0.2, -0.9, math.nan]})
    assert transition(frame) == 10
    # The toy study's own: from -0.97 to -0.85 and back is no turn.
    flat = pd.DataFrame({"step": [12, 24, 36, 48, 60, 72], "local_cosine": [-0.97, -0.93, -0.92, -0.91, -0.85, -0.88]})
    assert transition(flat) is None
    assert transition(frame.assign(local_cosine=math.nan)) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a toy base and a rank-1 run whose adapters were kept every other step."""
    folder = tmp_path_factory.mktemp("trajectory")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_base("qwen2", Path("base"))
        entry = train_here(Path("base"), Path("run"), ONE, trajectory=EVERY)
    return folder, entry


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_adapters_are_kept_and_the_last_is_the_result(run):
    folder, entry = run
    kept = dict(kept_along(folder / "run"))
    assert list(kept) == [2, 4, 6]
    assert sha256_file(kept[6] / WEIGHTS) == entry["sha256"][WEIGHTS] != sha256_file(kept[4] / WEIGHTS)
    vectors = {step: rank_one_b(path) for step, path in kept.items()}
    assert {vector.shape for vector in vectors.values()} == {(32,)}
    assert set(local_cosine({0: np.zeros(32), **vectors}, 2)) == {2, 4}
    norms = pd.read_csv(folder / "run" / "gradient_norm.csv")
    assert list(norms["step"]) == [1, 2, 3, 4, 5, 6] and (norms["gradient_norm"] > 0).all()
    assert settings().max_steps == 6


def test_what_is_kept_survives_an_interruption(run, tmp_path, monkeypatch):
    folder, entry = run
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(folder / "base")
    whole = KeepAlong.on_step_end

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise InterruptedError
        whole(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(KeepAlong, "on_step_end", stop)
        with pytest.raises(InterruptedError):
            train_here(Path("base"), Path("run"), ONE, trajectory=EVERY)
    assert not Path("run").exists()
    assert train_here(Path("base"), Path("run"), ONE, trajectory=EVERY) == entry
    assert hashes(Path("run")) == hashes(folder / "run")


def test_more_than_one_vector_has_no_direction(run, tmp_path, monkeypatch):
    folder, _ = run
    monkeypatch.chdir(tmp_path)
    two = AdapterSpec(rank=1, alpha=16, projections=("down",))
    Path("base").symlink_to(folder / "base")
    train_here(Path("base"), Path("run"), two, max_steps=2)
    assert rank_one_b(Path("run")) is None


def test_the_figure_says_its_rule(tmp_path):
    frame = pd.DataFrame(
        {
            "run": "r",
            "step": [0, 2, 4, 6],
            "misalignment_percent": [0.0, 5.0, 30.0, 40.0],
            "misalignment_percent_by_seed": [(0.0, 0.0), (4.0, 6.0), (20.0, 40.0), (30.0, 50.0)],
            "local_cosine": [math.nan, -0.9, 0.3, math.nan],
        }
    )
    seeds = pd.DataFrame(
        {"run": "r", "seed": 1, "step": [2, 4], "gradient_norm": [1.0, 2.0], "local_cosine": [-0.9, 0.3]}
    )
    paths = along_training(frame, seeds, tmp_path / "figure", label="toy")
    assert all(path.stat().st_size > 0 for path in paths)
