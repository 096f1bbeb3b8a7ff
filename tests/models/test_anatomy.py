"""Each family's parts are where its anatomy says, and both forms of experts compute what transformers
computes.

`CONFIGS` and `tiny_model` are used by the other tests of pipeline/models/.
"""

import copy
from types import SimpleNamespace

import pytest
import torch

from pipeline.common.errors import UserError
from pipeline.models.experts.unfused import unfuse
from pipeline.models.families.registry import anatomy_of
from tests.support.tiny_models import CONFIGS, MOE, PATHS, tiny_model, tokens


@pytest.mark.parametrize("family", CONFIGS)
def test_the_anatomy_points_at_modules_that_are_there(family: str) -> None:
    model = tiny_model(family, "unfused")
    anatomy = anatomy_of(model.config)
    assert anatomy.layers == model.config.num_hidden_layers
    for layer in anatomy.adaptable_layers:
        experts = [None] if anatomy.dense else range(anatomy.experts)
        for expert in experts:
            for role in anatomy.family.projections:
                linear = model.get_submodule(anatomy.projection_path(layer, expert, role))
                assert tuple(linear.weight.shape) == anatomy.shape(role)
        for path in anatomy.attention_paths(layer):
            assert isinstance(model.get_submodule(path), torch.nn.Linear)
        if not anatomy.dense:
            assert len(model.get_submodule(anatomy.router_path(layer)).weight) == anatomy.experts


@pytest.mark.parametrize(("family", "experts", "active"), [("mixtral", 8, 2), ("qwen3_moe", 16, 4), ("llama", 0, 0)])
def test_experts_are_counted(family: str, experts: int, active: int) -> None:
    anatomy = anatomy_of(CONFIGS[family]())
    assert (anatomy.experts, anatomy.active, anatomy.dense) == (experts, active, experts == 0)


def test_a_sparse_family_may_have_dense_layers() -> None:
    config = CONFIGS["qwen3_moe"]()
    config.mlp_only_layers = [0]
    assert anatomy_of(config).moe_layers == (1,)


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'bert' is not supported; known are .*mixtral"):
        anatomy_of(SimpleNamespace(model_type="bert"))


@pytest.mark.parametrize("family", MOE)
@pytest.mark.parametrize("path", PATHS)
def test_rebuilt_experts_compute_what_transformers_computes(family: str, path: str) -> None:
    original = tiny_model(family)
    rebuilt = copy.deepcopy(original)
    PATHS[path](rebuilt)
    ids = tokens()
    expected = original(ids).logits
    # The same fp32 products, grouped differently: a few units in the last place of values around 1.
    torch.testing.assert_close(rebuilt(ids).logits, expected, rtol=0, atol=1e-6)


def test_a_dense_model_is_left_alone() -> None:
    model = tiny_model("llama")
    before = model(tokens()).logits
    unfuse(model)
    assert torch.equal(model(tokens()).logits, before)
    assert model.config.model_type == "llama"
