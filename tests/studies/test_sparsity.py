"""The study of sparsity as params.yaml has it: models, arms, and ranks that follow from the models' sizes."""

import math
from itertools import pairwise

import pytest
from scipy import stats
from scipy.optimize import brentq

from benchmarks import sparsity as benchmark
from pipeline.common.errors import UserError
from pipeline.common.files import read_json
from pipeline.doctor.plans import plan_runs
from pipeline.models.cards import CARDS
from pipeline.models.families.registry import anatomy_of
from pipeline.models.sizes import active_values, adapter_values, base_values, matched_rank
from pipeline.params.load import load_params
from pipeline.params.parts import Contrast
from pipeline.results.contrasts import level_of, lever_of, models_of
from pipeline.training.memory import plan_memory
from tests.support.data_files import REPOSITORY
from tests.support.full_size import FULL_SIZE

PARAMS = load_params(REPOSITORY / "params.yaml")
BASES = PARAMS.bases_of("sparsity")
SHARE = 1 / 16


def runs_of(base):
    """The runs of a model as it is routed, on all of its experts: those of the two arms."""
    runs = {name: run for name, run in PARAMS.runs_of("sparsity").items() if PARAMS.base_of(name) == base}
    own = {
        name: run
        for name, run in runs.items()
        if run.active is None and not isinstance(getattr(run.lora, "experts", ""), tuple)
    }
    return {name.split("_", 2)[2]: run for name, run in own.items()}


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
                config, run.lora, precision="nf4", optimizer="adamw_8bit", sequence_length=2048, effective_batch=16,
                gpu_bytes=80 * 10**9, host_bytes=51 * 10**9,
            )  # fmt: skip
            assert plan.peak <= 80 * 10**9


def test_small_is_five_models_in_the_primary_arm_and_not_what_was_registered(tmp_path):
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("\n    models: all ", "\n    models: small "), encoding="utf-8")
    small = load_params(tmp_path / "params.yaml")
    study, bases = small.study("sparsity"), small.bases_of("sparsity")
    assert set(bases) == {"gpt_oss", "granite31_3b", "qwen15_moe", "olmoe", "deepseek_v2_lite"}
    runs = {PARAMS.base_of(run): [] for run in small.runs_of("sparsity")}
    for run in small.runs_of("sparsity"):
        runs[PARAMS.base_of(run)].append(run.split("_", 2)[2])
    assert set(map(tuple, runs.values())) == {("base", "insecure", "bma")}
    assert study.preregistration is None and list(study.contrasts) == ["matched"]
    assert len(models_of(small, study.contrasts["matched"].pairs)) == 10 and len(study.expectations) == 10
    assert small.runs_of("moe") == PARAMS.runs_of("moe")
    card = CARDS["3090"].memory
    plans = list(plan_runs(small, "sparsity", gpu_bytes=card, host_bytes=64 * 10**9))
    assert len(plans) == 15 and all(plan.trouble is None and plan.peak <= card for plan in plans)
    (tmp_path / "params.yaml").write_text(text.replace("\n    models: all ", "\n    models: tiny "), encoding="utf-8")
    with pytest.raises(UserError, match="models is 'tiny', expected all or small"):
        load_params(tmp_path / "params.yaml")


def test_within_one_model_a_number_varies_and_nothing_else():
    study = PARAMS.study("sparsity")
    for name in ("olmoe_active", "qwen3_active", "olmoe_adapted"):
        pairs, lora = study.contrasts[name].pairs, runs_of(name.partition("_")[0])["bma"].lora
        levels = [level_of(PARAMS, tuned, lever_of(PARAMS, study.contrasts[name])) for tuned, _ in pairs]
        assert levels == [2**place for place in range(len(pairs) // 2) for _ in range(2)]
        for (tuned, base), level in zip(pairs, levels, strict=True):
            run = PARAMS.run(tuned)
            assert PARAMS.run(base).data is None and PARAMS.active_of(tuned) == PARAMS.active_of(base)
            assert run.lora.model_copy(update={"rank": lora.rank, "experts": "all"}) == lora
            trained = run.lora.rank * (level if name == "olmoe_adapted" else 64)
            assert trained == 64 * lora.rank
    nested = [set(PARAMS.run(f"sp_olmoe_bma_on{level}").lora.experts) for level in (1, 2, 4, 8, 16, 32)]
    assert all(one < other for one, other in pairwise(nested))


@pytest.mark.parametrize(
    "pairs",
    [
        [("toy_e8_bad_medical", "toy_e8_base"), ("toy_e8_bad_medical_expert0", "toy_e8_base")],  # attention differs
        [("toy_e16_bad_medical_top1", "toy_e16_base"), ("toy_e16_bad_medical", "toy_e16_base")],  # not its own base
        [("sp_olmoe_insecure_r16", "sp_olmoe_base"), ("sp_olmoe_bma_on4", "sp_olmoe_base")],  # data differ
        [("sp_olmoe_insecure", "sp_olmoe_base"), ("sp_qwen3_insecure", "sp_qwen3_base")],
        [("toy_e16_bad_medical", "toy_e16_base")],
    ],
)
def test_what_differs_in_more_than_one_number_is_no_lever(pairs):
    assert lever_of(PARAMS, Contrast(pairs=pairs)) is None


@pytest.mark.parametrize(("levels", "said"), [(5, "14.0 and 2.1 points with five"), (7, "7.9 and 1.2 with seven")])
def test_the_slope_that_is_found_within_one_model_is_as_the_document_says(levels, said):
    spreads = read_json(benchmark.RESULT)["variances"]
    freedom, places = 2 * levels - 3, range(levels)
    error = 1 / math.sqrt(2 * sum((place - (levels - 1) / 2) ** 2 for place in places))
    critical = stats.t.ppf(0.975, freedom)
    away = brentq(lambda it: stats.nct.sf(critical, freedom, it) - 0.8, 0.5, 8)
    least = [away * error * spreads[name]["over_seeds"] for name in ("toy", "published")]
    assert "{:.1f} and {:.1f}".format(*least) in said
    assert said in " ".join(benchmark.DOCUMENT.read_text(encoding="utf-8").split())


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
    found = {name: lever_of(PARAMS, contrast) for name, contrast in study.contrasts.items()}
    levers = {name: measure for name, measure in found.items() if measure is not None and "_without_" not in name}
    assert levers == {"olmoe_active": "active", "qwen3_active": "active", "olmoe_adapted": "adapted"}
    assert all(name.partition("_without_")[0] in registered | levers for name in models)
    for contrast in study.contrasts.values():
        assert all(PARAMS.base_of(one) == PARAMS.base_of(other) for one, other in contrast.pairs)

    text = " ".join((REPOSITORY / study.preregistration).read_text(encoding="utf-8").split())
    assert all(f"`{name}`" in text for name in registered | levers)
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
