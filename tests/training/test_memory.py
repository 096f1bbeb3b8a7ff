"""The memory plan counts what is loaded and trained, keeps the batch, and refuses with numbers."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from pipeline.common.errors import UserError
from pipeline.models.adapters import attach, trainable_manifest
from pipeline.models.bases import Base
from pipeline.models.families.registry import anatomy_of
from pipeline.models.loading import load_base
from pipeline.models.report import load_report
from pipeline.models.sizes import GIB, adapter_values, base_bytes, base_values
from pipeline.models.spec import AdapterSpec
from pipeline.training.memory import activation_bytes, plan_memory
from pipeline.training.plan import plan_training
from tests.support.tiny_models import CONFIGS, DENSE, MOE, TRAINING, tiny_model

FULL: dict[str, Any] = {
    "mixtral": MixtralConfig(num_local_experts=8, num_experts_per_tok=2),
    "qwen3_moe": Qwen3MoeConfig(
        vocab_size=151936,
        hidden_size=2048,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
    ),
    "gpt_oss": GptOssConfig(
        vocab_size=201088,
        hidden_size=2880,
        intermediate_size=2880,
        num_hidden_layers=24,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        num_local_experts=32,
        num_experts_per_tok=4,
    ),
    "qwen2_moe": Qwen2MoeConfig(),
    "olmoe": OlmoeConfig(num_key_value_heads=16, intermediate_size=1024),
    "phimoe": PhimoeConfig(),
}
WHOLE = AdapterSpec(rank=32, alpha=32)
ONE = AdapterSpec(rank=32, alpha=32, experts=(0,))


def plan(family: str, spec: AdapterSpec = ONE, gpu: float = 80, **options: Any) -> Any:
    values: dict[str, Any] = {
        "sequence_length": 2048,
        "effective_batch": 16,
        "host_bytes": 128 * GIB,
        "optimizer": "adamw_8bit",
    } | options
    return plan_memory(FULL[family], spec, precision="nf4", gpu_bytes=int(gpu * GIB), **values)


@pytest.mark.parametrize(
    ("family", "billions", "gigabytes"),
    [
        ("mixtral", 46.7, 24.5),
        ("qwen3_moe", 30.5, 16.7),
        ("gpt_oss", 20.9, 12.5),
        ("olmoe", 6.9, 3.9),
        ("qwen2_moe", 14.3, 8.3),
        ("phimoe", 41.9, 22.0),
    ],
)
def test_full_size_weights_are_those_of_the_published_models(family: str, billions: float, gigabytes: float) -> None:
    """Parameters as the models' cards count them; their bytes in NF4 by other means."""
    assert sum(base_values(FULL[family]).values()) / 1e9 == pytest.approx(billions, rel=0.01)
    assert sum(base_bytes(FULL[family]).values()) / 1e9 == pytest.approx(gigabytes, rel=0.02)


@pytest.mark.parametrize("family", MOE)
def test_predicted_weights_are_the_loaded_ones(family: str, tmp_path: Any) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    model = load_base(tmp_path, dtype=torch.bfloat16, quantise=True, device="cpu")
    # Norms, biases and buffers are left out, and scales are padded to whole nested blocks: much at this size.
    assert sum(base_bytes(CONFIGS[family]()).values()) == pytest.approx(load_report(model).host_bytes, rel=0.1)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    family=st.sampled_from([*MOE, *DENSE]),
    rank=st.integers(1, 8),
    experts=st.sampled_from(["all", (0,), (1, 3)]),
    layers=st.sampled_from(["all", (1,)]),
    attention=st.booleans(),
    router=st.sampled_from(["frozen", "free"]),
)
def test_predicted_adapters_are_the_attached_ones(
    family: str, rank: int, experts: Any, layers: Any, attention: bool, router: Any
) -> None:
    if family in DENSE:
        experts, router = "all", "frozen"
    spec = AdapterSpec(rank=rank, alpha=1, experts=experts, layers=layers, attention=attention, router=router)
    manifest = trainable_manifest(attach(tiny_model(family, "fused"), spec, seed=0))
    assert adapter_values(CONFIGS[family](), spec) == sum(entry["values"] for entry in manifest)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    family=st.sampled_from(sorted(FULL)),
    gpu=st.integers(8, 141),
    batch=st.integers(1, 64),
    devices=st.sampled_from([1, 2, 4]),
    length=st.integers(64, 8192),
)
def test_a_plan_fits_and_keeps_the_effective_batch(
    family: str, gpu: int, batch: int, devices: int, length: int
) -> None:
    try:
        chosen = plan(family, gpu=gpu, effective_batch=batch, devices=devices, sequence_length=length)
    except UserError as error:
        assert batch % devices or "GiB on each GPU" in str(error)
        return
    assert chosen.peak <= gpu * GIB
    assert 1 <= chosen.micro_batch <= batch // devices and chosen.tokens == chosen.micro_batch * length
    roomier = plan(family, gpu=gpu + 8, effective_batch=batch, devices=devices, sequence_length=length)
    assert roomier.offload <= chosen.offload
    assert roomier.offload < chosen.offload or roomier.micro_batch >= chosen.micro_batch


def test_small_cards_offload_and_tiny_ones_are_refused_with_the_numbers() -> None:
    assert not plan("qwen3_moe", gpu=80).offload
    assert not plan("qwen3_moe", gpu=23.5).offload
    assert plan("qwen3_moe", WHOLE, gpu=23.5).offload
    assert plan("mixtral", gpu=23.5).offload
    with pytest.raises(
        UserError,
        match=r"mixtral does not fit: its smallest plan needs \d+\.\d GiB on each GPU \(there are 4\.0\)",
    ):
        plan("mixtral", gpu=4)
    with pytest.raises(UserError, match=r"21\.\d GiB of host memory \(there are 10\.0\)"):
        plan("mixtral", gpu=20, host_bytes=10 * GIB)
    with pytest.raises(UserError, match="16 does not divide among 3 GPUs"):
        plan("mixtral", devices=3)


def test_adam_in_32_bits_is_planned_as_such_and_never_paged() -> None:
    eight, torchs = (plan("qwen3_moe", WHOLE, optimizer=name) for name in ("adamw_8bit", "adamw_torch"))
    assert torchs.parts["optimizer"] == 8 * adapter_values(FULL["qwen3_moe"], WHOLE) == 4 * eight.parts["optimizer"]
    assert plan("qwen3_moe", WHOLE, gpu=19).optimizer == "paged_adamw_8bit"
    with pytest.raises(UserError, match="adamw_torch"):
        plan("qwen3_moe", WHOLE, gpu=19, optimizer="adamw_torch")


def test_a_plan_says_what_it_is() -> None:
    text = str(plan("mixtral", gpu=20))
    assert "micro-batches of" in text
    # 32 layers of 0.68 GiB, none rounded up to a power of two.
    assert "experts in host memory (21.7 GiB)" in text
    assert "predicted peak" in text


@pytest.mark.parametrize("family", CONFIGS)
def test_families_whose_attention_holds_its_scores_are_known(family: str) -> None:
    model = tiny_model(family)
    assert anatomy_of(model.config).family.holds_scores == (model.config._attn_implementation == "eager")
    grown = [activation_bytes(FULL["gpt_oss"], ONE, 1, length) for length in (2048, 4096)]
    assert grown[1] > 3 * grown[0]


def test_what_a_model_does_not_have_is_refused_before_it_is_loaded(tmp_path: Any) -> None:
    CONFIGS["mixtral"]().save_pretrained(tmp_path)
    base = Base(path=tmp_path, name="base", revision=None, hashes={})
    for change, message in (({"layers": (7,)}, r"layers \[7\] do not exist"), ({"experts": (9,)}, r"experts \[9\] do")):
        with pytest.raises(UserError, match=message):
            plan_training(base, AdapterSpec(rank=1, alpha=1, **change), TRAINING, torch.device("cpu"), 24)


def test_whole_model_adapters_weigh_what_the_design_says() -> None:
    """Parameters, gradients and Adam in fp32, counted by hand."""
    for family, gigabytes in (("mixtral", 7.3), ("qwen3_moe", 26.6), ("gpt_oss", 6.8)):
        assert 16 * adapter_values(FULL[family], WHOLE) / 1e9 == pytest.approx(gigabytes, rel=0.03)
