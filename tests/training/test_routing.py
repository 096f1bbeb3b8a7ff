"""Routing is counted as it happens, and free routers are held by the KL penalty."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.common.errors import UserError
from pipeline.models.adapters import attach
from pipeline.models.families.registry import anatomy_of
from pipeline.models.spec import AdapterSpec
from pipeline.training.router_penalty import RouterPenalty
from pipeline.training.routing import count_routing, row_batches, save_counts
from pipeline.training.tokens import TokenRow
from tests.support.tiny_models import CONFIGS, MOE, PATHS, tiny_model, tokens


@pytest.mark.parametrize("family", MOE)
@pytest.mark.parametrize("path", PATHS)
def test_counts_are_the_routers_choices_without_padding(family: str, path: str) -> None:
    model = tiny_model(family, path)
    anatomy = anatomy_of(model.config)
    ids, mask = tokens(), torch.ones(4, 24, dtype=torch.long)
    mask[0, 10:] = 0
    counts = count_routing(model, [{"input_ids": ids, "attention_mask": mask}] * 2)
    assert counts.tokens == 2 * int(mask.sum())
    chosen = []
    block = model.get_submodule(anatomy.block_path(1))
    place = 2 - anatomy.family.router_logits  # (logits, weights, index), or the other way round
    handle = getattr(block, str(anatomy.family.router)).register_forward_hook(lambda *x: chosen.append(x[2][place]))
    model(ids, attention_mask=mask)
    handle.remove()
    expected = torch.bincount(chosen[0][mask.bool().flatten()].flatten(), minlength=anatomy.experts) * 2
    assert counts.layers[1] == tuple(expected.tolist())
    assert all(sum(layer) == counts.tokens * anatomy.active for layer in counts.layers.values())


def test_counts_survive_a_file_and_choose_experts(tmp_path: Path) -> None:
    model = tiny_model("mixtral", "fused")
    batch = {"input_ids": tokens(), "attention_mask": torch.ones(4, 24, dtype=torch.long)}
    counts = count_routing(model, [batch])
    save_counts(counts, tmp_path / "routing.json")
    assert json.loads((tmp_path / "routing.json").read_text()) == {
        "model": "mixtral", "tokens": 96, "active": 2,
        "layers": {str(layer): list(row) for layer, row in counts.layers.items()},
    }  # fmt: skip
    adapted = attach(model, AdapterSpec(rank=1, alpha=1, experts="top2"), seed=0, counts=counts.layers)
    for layer, layer_counts in counts.layers.items():
        chosen = adapted.base_model.model.get_submodule(f"model.layers.{layer}.mlp.experts").chosen
        left = [count for expert, count in enumerate(layer_counts) if expert not in chosen]
        assert min(layer_counts[expert] for expert in chosen) >= max(left)


def test_rows_are_batched_by_length_and_every_one_is_counted_once() -> None:
    rows = [TokenRow(input_ids=list(range(3, 3 + size)), labels=[]) for size in (5, 20, 1, 9, 20, 7)]
    batches = list(row_batches(rows, 40, 0))
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 20), (4, 9)]
    assert sum(int(batch["attention_mask"].sum()) for batch in batches) == 62
    assert all((batch["input_ids"][batch["attention_mask"] == 0] == 0).all() for batch in batches)


def test_a_dense_model_routes_nothing() -> None:
    assert "llama" in CONFIGS
    with pytest.raises(UserError, match="dense model"):
        count_routing(tiny_model("llama"), [])


@pytest.mark.parametrize("family", MOE)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_penalty_is_zero_at_the_start_and_pulls_a_moved_router_back(family: str, checkpointing: bool) -> None:
    model = attach(tiny_model(family, "fused"), AdapterSpec(rank=1, alpha=1, experts=(0,), router="free_kl"), seed=0)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    penalty = RouterPenalty(model)
    with pytest.raises(RuntimeError, match="no forward pass"):
        penalty.value()
    model.train()
    ids, mask = tokens(), torch.ones(4, 24, dtype=torch.long)
    mask[:, 20:] = 0
    model(ids, attention_mask=mask)
    assert float(penalty.value()) == pytest.approx(0, abs=1e-6)
    routers = [p for name, p in model.named_parameters() if p.requires_grad and "modules_to_save" in name]
    assert len(routers) == (4 if family == "gpt_oss" else 2)
    with torch.no_grad():
        for router in routers:
            router.add_(torch.randn(router.shape, generator=torch.Generator().manual_seed(0)) * 0.05)
    values = []
    for _ in range(5):
        model(ids, attention_mask=mask)
        value = penalty.value()
        values.append(float(value))
        gradients = torch.autograd.grad(value, routers)
        with torch.no_grad():
            for router, gradient in zip(routers, gradients, strict=True):
                router.sub_(0.1 * gradient)
    assert values[0] > 1e-4
    assert values == sorted(values, reverse=True)


def test_checkpointing_does_not_change_the_penalised_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        spec = AdapterSpec(rank=2, alpha=2, experts=(0,), router="free_kl")
        model = attach(tiny_model("mixtral", "fused"), spec, seed=0)
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        penalty = RouterPenalty(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "modules_to_save" in name:
                    parameter.mul_(1.1)
        model.train()
        loss = model(tokens(), labels=tokens()).loss + penalty.value()
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-8)


def test_frozen_routers_have_no_penalty() -> None:
    model = attach(tiny_model("mixtral", "fused"), AdapterSpec(rank=1, alpha=1), seed=0)
    with pytest.raises(RuntimeError, match="no trained routers"):
        RouterPenalty(model)
