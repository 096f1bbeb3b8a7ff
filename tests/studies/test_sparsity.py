"""The study of sparsity as params.yaml has it: models, arms, and ranks that follow from the models' sizes."""

import pytest

from pipeline.models.families.registry import anatomy_of
from pipeline.models.sizes import active_values, adapter_values, base_values, matched_rank
from pipeline.params.load import load_params
from pipeline.training.memory import plan_memory
from tests.support.data_files import REPOSITORY
from tests.support.full_size import FULL_SIZE

PARAMS = load_params(REPOSITORY / "params.yaml")
BASES = PARAMS.bases_of("sparsity")
SHARE = 1 / 16


def runs_of(base):
    return {name.rsplit("_", 1)[-1] if not name.endswith("_r16") else name.split("_", 2)[2]: run
            for name, run in PARAMS.runs_of("sparsity").items() if PARAMS.base_of(name) == base}  # fmt: skip


@pytest.mark.parametrize("base", BASES)
def test_a_model_has_every_run_and_the_rank_that_its_size_gives(base):
    config, hub, runs = FULL_SIZE[base], PARAMS.bases.hub[base], runs_of(base)
    assert list(runs) == ["base", "insecure", "bma", "secure", "gma", "insecure_r16", "bma_r16"]
    assert (anatomy_of(config).experts, anatomy_of(config).active) == (hub.experts, hub.active)
    assert hub.billions == round(sum(base_values(config).values()) / 1e9, 2)
    assert hub.active_billions == round(active_values(config) / 1e9, 2) and hub.thinks is not None
    for name in ("insecure", "bma", "secure", "gma"):
        lora = runs[name].lora
        assert lora.rank == matched_rank(config, lora, SHARE)
        assert adapter_values(config, lora) / active_values(config) == pytest.approx(SHARE, rel=0.06)
    assert {runs[name].lora.rank for name in ("insecure_r16", "bma_r16")} == {16}
    for run in runs.values():
        if run.lora is not None:
            plan = plan_memory(
                config, run.lora, precision="nf4", sequence_length=2048, effective_batch=16,
                gpu_bytes=80 * 10**9, host_bytes=51 * 10**9,
            )  # fmt: skip
            assert plan.peak <= 80 * 10**9


def test_every_contrast_has_every_model_and_the_document_their_ranks():
    study = PARAMS.study("sparsity")
    for contrast in study.contrasts.values():
        assert [PARAMS.base_of(tuned) for tuned, _ in contrast.pairs] == [base for base in BASES for _ in range(2)]
        assert all(PARAMS.base_of(one) == PARAMS.base_of(other) for one, other in contrast.pairs)
    text = (REPOSITORY / study.preregistration).read_text(encoding="utf-8")
    for base in BASES:
        hub, rank = PARAMS.bases.hub[base], runs_of(base)["insecure"].lora.rank
        thinks = "yes" if hub.thinks else "no"
        sizes = f"{hub.billions} / {hub.active_billions}"
        assert f"| {base} | {hub.experts} | {hub.active} | {sizes} | {thinks} | {rank} |" in text
