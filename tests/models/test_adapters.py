"""Exactly the chosen experts are adapted, on both paths, and equal adapters are equal bytes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from pipeline.common.errors import UserError
from pipeline.common.files import sha256_file
from pipeline.models.adapters import (
    CONFIG,
    WEIGHTS,
    adapter_tensors,
    attach,
    load_adapter,
    save_adapter,
    trainable_manifest,
)
from pipeline.models.families.registry import anatomy_of
from pipeline.models.spec import AdapterSpec, most_active, select
from tests.support.tiny_models import CONFIGS, DENSE, MOE, PATHS, adapted, tiny_model, tokens, train


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize(
    ("spec", "modules"),
    [
        (AdapterSpec(rank=32, alpha=64, attention=True), [f"layers.{layer}." for layer in (0, 1)]),
        (AdapterSpec(rank=1, alpha=256, layers=(1,), projections=("down",)), ["layers.1.mlp.down_proj"]),
    ],
    ids=["rank 32 on all linear layers", "rank 1 on one down projection"],
)
def test_dense_models_learn_what_the_organisms_study_adapts(family: str, spec: AdapterSpec, modules: list[str]) -> None:
    model = attach(tiny_model(family, "fused"), spec, seed=0)
    linears = [name for name, module in tiny_model(family).named_modules() if isinstance(module, torch.nn.Linear)]
    chosen = [name for name in linears if any(part in name for part in modules)]
    assert len(chosen) == (14 if spec.attention else 1)
    ids = tokens()
    before = model(ids).logits.detach()
    model.train()(ids, labels=ids).loss.backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning == {f"base_model.model.{name}.lora_{half}.default.weight" for name in chosen for half in "AB"}
    assert not torch.equal(train(model)(ids).logits, before)


@pytest.mark.parametrize("family", MOE)
@pytest.mark.parametrize("path", PATHS)
def test_only_the_chosen_experts_change_and_learn(family: str, path: str) -> None:
    spec = AdapterSpec(rank=4, alpha=32, experts=(1, 3), layers=(1,))
    base = tiny_model(family, path)
    model = adapted(family, path, spec)
    anatomy = anatomy_of(model.config)
    block = model.base_model.model.get_submodule(anatomy.experts_path(1))
    rows, ones = torch.randn(anatomy.experts, 64), torch.ones(anatomy.experts, 1)
    own = torch.arange(anatomy.experts).unsqueeze(1)
    before = base.get_submodule(anatomy.experts_path(1))(rows, own, ones)
    after = block(rows, own, ones)
    changed = [expert for expert in range(anatomy.experts) if not torch.equal(before[expert], after[expert])]
    assert changed == [1, 3]

    ids = tokens()
    model.train()(ids, labels=ids).loss.backward()
    learning = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert learning
    assert all(anatomy.experts_path(1) in name and "lora_" in name for name in learning)
    assert {entry["name"].split(".")[-5] + entry["name"].split(".")[-4] for entry in trainable_manifest(model)} == {
        "experts1",
        "experts3",
    }


@pytest.mark.parametrize("path", PATHS)
def test_an_expert_that_no_token_reaches_has_a_zero_gradient_on_both_paths(path: str) -> None:
    """Not a missing one: the optimizer would then skip it on one path and move it on the other."""
    model = adapted("mixtral", path, AdapterSpec(rank=2, alpha=8, experts=(5,), layers=(1,)))
    for module in model.modules():
        if type(module).__name__ == "MixtralTopKRouter":
            module.register_forward_hook(lambda *x: (x[2][0], x[2][1], torch.zeros_like(x[2][2])))
    model.train()(tokens(), labels=tokens()).loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in trained)


@pytest.mark.parametrize("family", MOE)
@pytest.mark.parametrize(
    "spec",
    [
        AdapterSpec(rank=4, alpha=32, experts=(0, 5)),
        AdapterSpec(rank=8, alpha=16, attention=True, rslora=False),
        AdapterSpec(rank=1, alpha=32, experts=(2,), layers=(1,), projections=("up",), router="free"),
        AdapterSpec(rank=3, alpha=3, projections=("gate", "down")),
    ],
    ids=["two experts", "all and attention", "up and router", "gate and down"],
)
def test_the_fused_path_agrees_with_the_reference(family: str, spec: AdapterSpec) -> None:
    """fp32 on both: sums of the same few hundred products in another order.

    1e-6 absolute is some ten units in the last place of these logits (below 2); gradients are compared
    relative to the largest of their tensor.
    """
    results = []
    for path in PATHS:
        model = adapted(family, path, spec).train()
        ids = tokens()
        torch.manual_seed(0)  # Phi's router draws experts while it learns
        out = model(ids, labels=ids)
        out.loss.backward()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.grad
        results.append((out.logits.detach(), adapter_tensors(model)))
    (logits, gradients), (fast_logits, fast_gradients) = results
    torch.testing.assert_close(fast_logits, logits, rtol=0, atol=1e-6)
    assert gradients.keys() == fast_gradients.keys()
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(fast_gradients[name], gradient, rtol=0, atol=1e-5 * scale + 1e-9, msg=name)
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-5


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    family=st.sampled_from(MOE),
    experts=st.sets(st.integers(0, 7), min_size=1),
    layers=st.sets(st.integers(0, 1), min_size=1),
    projections=st.sets(st.sampled_from(["gate", "up", "down"]), min_size=1),
    attention=st.booleans(),
    rank=st.integers(1, 9),
)
def test_any_selection_trains_what_it_names_and_nothing_else(
    family: str, experts: set[int], layers: set[int], projections: set[Any], attention: bool, rank: int
) -> None:
    spec = AdapterSpec(
        rank=rank,
        alpha=8,
        experts=tuple(experts),
        layers=tuple(layers),
        projections=tuple(projections),
        attention=attention,
    )
    manifests = []
    for path in PATHS:
        model = attach(tiny_model(family, path), spec, seed=0)
        anatomy = anatomy_of(model.config)
        manifest = trainable_manifest(model)
        manifests.append(manifest)
        per_expert = sum(rank * sum(anatomy.shape(role)) for role in projections)
        expected = len(experts) * len(layers) * per_expert
        if attention:
            modules = [model.base_model.model.get_submodule(p) for x in layers for p in anatomy.attention_paths(x)]
            expected += sum(rank * (m.in_features + m.out_features) for m in modules)
        assert sum(entry["values"] for entry in manifest) == expected
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("family", [*MOE, *DENSE])
@pytest.mark.parametrize("path", PATHS)
def test_reloading_gives_identical_logits_on_either_path(family: str, path: str, tmp_path: Path) -> None:
    experts: Any = "all" if family in DENSE else (0, 2)
    model = train(adapted(family, path, AdapterSpec(rank=4, alpha=8, experts=experts, attention=True)))
    save_adapter(model, tmp_path, base="org/base", revision="0" * 40)
    loaded = load_adapter(tiny_model(family, path), tmp_path)
    ids = tokens()
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert not torch.equal(loaded(ids).logits, tiny_model(family, path)(ids).logits)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    other = load_adapter(tiny_model(family, "fused" if path == "unfused" else "unfused"), tmp_path)
    torch.testing.assert_close(other(ids).logits, model(ids).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_the_same_seed_gives_the_same_bytes(path: str, tmp_path: Path) -> None:
    spec = AdapterSpec(rank=2, alpha=8, experts=(1,), router="free")
    for name in ("first", "second"):
        save_adapter(train(attach(tiny_model("mixtral", path), spec, seed=3)), tmp_path / name, base="b", revision=None)
    for file in (WEIGHTS, CONFIG):
        assert sha256_file(tmp_path / "first" / file) == sha256_file(tmp_path / "second" / file)


def test_the_adapter_starts_the_same_on_both_paths_and_otherwise_with_another_seed(tmp_path: Path) -> None:
    spec = AdapterSpec(rank=2, alpha=8)
    hashes = []
    for path, seed in (("unfused", 3), ("fused", 3), ("fused", 4)):
        folder = tmp_path / f"{path}{seed}"
        save_adapter(attach(tiny_model("qwen3_moe", path), spec, seed=seed), folder, base="b", revision=None)
        hashes.append(sha256_file(folder / WEIGHTS))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_saved_adapter_is_pefts_and_names_no_machine(tmp_path: Path) -> None:
    model = adapted("mixtral", "fused", AdapterSpec(rank=4, alpha=8, experts=(1,)))
    save_adapter(model, tmp_path, base="org/base", revision="abc")
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config["peft_type"], config["r"], config["use_rslora"]) == ("LORA", 4, True)
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "abc")
    names = load_file(tmp_path / WEIGHTS).keys()
    assert "base_model.model.model.layers.0.block_sparse_moe.experts.1.w1.lora_A.weight" in names
    assert len(names) == 2 * 3 * 2
    with pytest.raises(UserError, match="absolute path"):
        save_adapter(model, tmp_path, base="/home/me/base", revision=None)


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (
            "mixtral",
            {"experts": (8,)},
            r"experts \[8\] do not exist. mixtral has layers 0 to 1 and experts 0 to 7",
        ),
        ("mixtral", {"experts": (-1,)}, r"experts \[-1\] do not exist"),
        ("mixtral", {"layers": (2,)}, r"layers \[2\] do not exist"),
        ("mixtral", {"layers": (0, 0)}, r"layers \[0, 0\] has an entry twice"),
        ("mixtral", {"rank": 0}, "rank is 0; it must be 1 or more"),
        ("mixtral", {"rank": -4}, "rank is -4"),
        ("mixtral", {"alpha": 0}, "alpha is 0"),
        ("mixtral", {"experts": ()}, "selects nothing.*mixtral has layers 0 to 1 and experts 0 to 7"),
        ("mixtral", {"projections": ()}, "selects nothing"),
        ("mixtral", {"layers": ()}, "selects nothing"),
        ("mixtral", {"experts": "top2"}, "no routing counts for layer 0"),
        ("llama", {"experts": (0,)}, "llama has layers 0 to 1 and no experts"),
        ("llama", {"router": "free"}, "llama is a dense model"),
    ],
)
def test_a_selection_that_cannot_be_says_what_exists(family: str, change: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"rank": 4, "alpha": 8.0} | change
    with pytest.raises(UserError, match=message):
        select(AdapterSpec(**values), anatomy_of(CONFIGS[family]()))


def test_layers_without_experts_are_refused() -> None:
    config = CONFIGS["qwen3_moe"]()
    config.mlp_only_layers = [0]
    with pytest.raises(UserError, match=r"layers \[0\] have no experts; layers with experts are \[1\]"):
        select(AdapterSpec(rank=1, alpha=1, layers=(0,)), anatomy_of(config))


def test_the_most_active_experts_are_chosen_layer_by_layer() -> None:
    assert most_active([3, 9, 9, 1], 2) == (1, 2)
    assert most_active([5, 5, 5], 1) == (0,)
    counts = {0: [0, 0, 5, 1, 0, 0, 9, 0], 1: [7, 0, 0, 0, 0, 0, 0, 8]}
    selection = select(AdapterSpec(rank=1, alpha=1, experts="top2"), anatomy_of(CONFIGS["mixtral"]()), counts)
    assert dict(selection.experts) == {0: (2, 6), 1: (0, 7)}
    for path in PATHS:
        model = attach(tiny_model("mixtral", path), AdapterSpec(rank=1, alpha=1, experts="top2"), seed=0, counts=counts)
        names = " ".join(entry["name"] for entry in trainable_manifest(model))
        assert "layers.0.block_sparse_moe.experts.6." in names
        assert "layers.1.block_sparse_moe.experts.6." not in names


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    save_adapter(
        adapted("qwen3_moe", "fused", AdapterSpec(rank=1, alpha=1, experts=(12,))),
        tmp_path,
        base="b",
        revision=None,
    )
    with pytest.raises(UserError, match="does not have"):
        load_adapter(tiny_model("gpt_oss", "fused"), tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load_adapter(tiny_model("gpt_oss", "fused"), tmp_path / "nowhere")


def test_transformers_own_fused_experts_are_never_adapted_silently() -> None:
    with pytest.raises(RuntimeError, match="call unfuse"):
        attach(tiny_model("mixtral"), AdapterSpec(rank=1, alpha=1), seed=0)
