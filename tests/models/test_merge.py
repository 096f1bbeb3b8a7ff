"""A merged checkpoint is the base with the adapter added, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.common.errors import UserError
from pipeline.models.adapters import save_adapter
from pipeline.models.families.registry import anatomy_of
from pipeline.models.loading import load_base
from pipeline.models.merge import merge_adapter
from pipeline.models.spec import AdapterSpec
from tests.support.tiny_models import DENSE, MOE, adapted, tiny_model, tokens

SPECS = {
    "two experts of one layer": AdapterSpec(rank=4, alpha=16, experts=(0, 3), layers=(1,)),
    "everything": AdapterSpec(rank=2, alpha=16, attention=True),
    "one projection, attention of one layer": AdapterSpec(
        rank=8, alpha=8, experts=(1,), layers=(1,), projections=("up",), attention=True, rslora=False
    ),
}
# Products of the same factors in another order, some folded together: a share of the logits' deviation, which is 0.07
# to 0.1 in most families and 0.8 in Gemma. Measured: 2e-6 in most, up to 7e-6 in Gemma, by processor.
TOLERANCE = 1e-5


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * expected.std().item())


@pytest.fixture
def saved(request: Any, tmp_path: Path) -> tuple[Path, Path, torch.Tensor]:
    """(base checkpoint, adapter, expected logits) of a family and a spec."""
    family, spec = request.param
    tiny_model(family).save_pretrained(tmp_path / "base", max_shard_size="200KB")
    model = adapted(family, "fused", spec)
    save_adapter(model, tmp_path / "adapter", base="org/base", revision="abc")
    return tmp_path / "base", tmp_path / "adapter", model(tokens()).logits


CASES = {
    f"{family}, {name}": (family, spec)
    for family in [*MOE, *DENSE]
    for name, spec in SPECS.items()
    if family in MOE or spec.experts == "all"
}
every_case = pytest.mark.parametrize("saved", CASES.values(), ids=CASES, indirect=True)


@every_case
def test_a_merged_checkpoint_gives_the_same_logits(saved: tuple[Path, Path, torch.Tensor], tmp_path: Path) -> None:
    base, adapter, expected = saved
    merge_adapter(base, adapter, tmp_path / "merged", shard_bytes=100_000)
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert_same(merged(tokens()).logits, expected)


def test_merging_changes_the_adapted_tensors_alone(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path / "base")
    spec = AdapterSpec(rank=4, alpha=16, experts=(3,), layers=(1,), projections=("down",), router="free")
    model = adapted("mixtral", "fused", spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.5)
    save_adapter(model, tmp_path / "adapter", base="b", revision=None)
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    before, after = (
        {name: tensor for file in (tmp_path / x).glob("*.safetensors") for name, tensor in load_file(file).items()}
        for x in ("base", "merged")
    )
    assert before.keys() == after.keys()
    block = "model.layers.1.block_sparse_moe"
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{block}.experts.3.w2.weight", f"{block}.gate.weight"}
    merged = load_base(tmp_path / "merged", dtype=torch.float32, device="cpu")
    assert_same(merged(tokens()).logits, model(tokens()).logits)


def test_an_adapter_of_another_base_is_not_merged(tmp_path: Path) -> None:
    tiny_model("qwen3_moe").save_pretrained(tmp_path / "base")
    model = adapted("mixtral", "fused", SPECS["everything"])
    save_adapter(model, tmp_path / "adapter", base="b", revision=None)
    assert anatomy_of(model.config).family.model_type == "mixtral"
    with pytest.raises(UserError, match="no part of a qwen3_moe model"):
        merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert not list(tmp_path.glob("merged/*.index.json"))
