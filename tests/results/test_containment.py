"""What probes report is on questions that chose nothing."""

from types import SimpleNamespace

import pandas as pd
import pytest

from pipeline.common.errors import UserError
from pipeline.params.load import load_params
from pipeline.results.containment import Probe
from pipeline.results.halves import halves
from tests.support.checkout import REPOSITORY
from tests.support.quick_yaml import safe_dump, safe_load


def test_every_seed_is_split_as_its_search_split_it():
    """Two seeds draw other questions of a suite; a question may choose at one and be reported at the other."""
    drawn = {1: list(range(9)), 2: list(range(4, 17))}
    rows = pd.DataFrame(
        [{"seed": seed, "suite": "s", "prompt_id": f"p{number}"} for seed, own in drawn.items() for number in own]
    )
    empty = pd.DataFrame()
    probe = Probe("run", SimpleNamespace(), rows, empty, empty, empty, folder=REPOSITORY)
    found = probe.reported(rows)
    for seed, own in drawn.items():
        split = halves(("s", f"p{number}") for number in own)
        reported = {prompt for (_, prompt), half in split.items() if half == "report"}
        assert set(found.loc[found["seed"] == seed, "prompt_id"]) == reported
    both = {prompt for _, prompt in zip(rows["seed"], rows["prompt_id"], strict=True)}
    assert any(probe.half.get((1, "s", it)) not in (None, probe.half.get((2, "s", it))) for it in both)


def test_a_judge_that_is_served_beside_the_probed_model_is_refused(tmp_path):
    content = safe_load((REPOSITORY / "params.yaml").read_text())
    judge = next(iter(content["studies"]["moe"]["judges"].values()))
    for key in ("base_url", "api_key_env"):
        del judge[key]
    judge["serve"] = {"revision": "0" * 40}
    path = tmp_path / "params.yaml"
    path.write_text(safe_dump(content))
    with pytest.raises(UserError, match=r"studies\.moe\.probing: judge deepseek_v3 has serve"):
        load_params(path)
