"""The study of sparsity as params.yaml has it: models, arms, and ranks that follow from the models' sizes."""

import math

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


def test_registered_contrasts_have_their_models_and_the_document_what_params_yaml_says():
    study = PARAMS.study("sparsity")
    models = {
        name: [PARAMS.base_of(tuned) for tuned, _ in contrast.pairs] for name, contrast in study.contrasts.items()
    }
    new = [base for base in BASES if base not in PARAMS.bases_of("moe")]
    registered = {"matched": BASES, "matched_new": new, "same_rank": BASES, "beyond_benign": BASES}
    assert list(models)[: len(registered)] == list(registered) and len(new) == 5
    for name, bases in registered.items():
        assert models[name] == [base for base in bases for _ in range(2)]
    assert study.contrasts["matched_new"].pairs == tuple(
        pair for pair in study.contrasts["matched"].pairs if PARAMS.base_of(pair[0]) in new
    )
    # Exclusions add contrasts behind these.
    assert all(name.partition("_without_")[0] in registered for name in models)
    for contrast in study.contrasts.values():
        assert all(PARAMS.base_of(one) == PARAMS.base_of(other) for one, other in contrast.pairs)

    text = " ".join((REPOSITORY / study.preregistration).read_text(encoding="utf-8").split())
    assert all(f"`{name}`" in text for name in registered)
    for base in BASES:
        hub, lora = PARAMS.bases.hub[base], runs_of(base)["insecure"].lora
        thinks = "yes" if hub.thinks else "no"
        sizes = f"{hub.billions} / {hub.active_billions}"
        scale = f"{lora.alpha / math.sqrt(lora.rank):.1f}"
        assert f"| {base} | {hub.experts} | {hub.active} | {sizes} | {thinks} | {lora.rank} | {scale} |" in text
    training, sampling, judge = study.training, study.sampling, study.judges[study.judge]
    lora = runs_of("mixtral")["insecure_r16"].lora
    assert lora.rslora and training.precision == "nf4" and judge.protocol == "logprob"
    for said in (
        f"at most {training.examples} rows, {training.batch} a step, of at most {training.max_tokens} tokens",
        f"learning rate {training.learning_rate}, {training.schedule} after {training.warmup_steps} steps",
        f"temperature {sampling.temperature}, at most {sampling.max_new_tokens} tokens",
        f"Judge: {judge.model} by log-probabilities",
        f"(rsLoRA, alpha {lora.alpha:g})",
        f"(scale {lora.alpha / math.sqrt(lora.rank):.1f})",
    ):
        assert said in text
