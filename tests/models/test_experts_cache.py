"""Experts in NF4 are quantised once per machine; what a kill or a disk damaged is made again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.common.errors import UserError
from pipeline.models.bases import open_checkpoint
from pipeline.models.experts import cache, grouped
from pipeline.models.experts.grouped import Groups
from pipeline.models.experts.offload import host_bytes, spread
from pipeline.models.experts.stacks import PackedExperts
from pipeline.models.families.registry import anatomy_of
from pipeline.models.loading import PACKED, load_frozen
from tests.support.tiny_models import CONFIGS, MOE, tiny_model, tokens

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def logits(base: Any, **options: Any) -> torch.Tensor:
    with torch.inference_mode():
        return load_frozen(base, "nf4", CPU, **options)(tokens()).logits


@pytest.fixture
def quantised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per projection that is quantised."""
    seen: list[int] = []
    put = PackedExperts.put
    monkeypatch.setattr(PackedExperts, "put", lambda self, *x: seen.append(x[0]) or put(self, *x))
    return seen


@pytest.mark.parametrize("family", MOE)
def test_a_base_is_quantised_once(family: str, tmp_path: Path, quantised: list[int]) -> None:
    tiny_model(family).save_pretrained(tmp_path / "base")
    base = open_checkpoint(tmp_path / "base")
    first = logits(base)
    count = len(quantised)
    anatomy = anatomy_of(CONFIGS[family]())
    assert count == len(anatomy.moe_layers) * 3 * anatomy.experts
    assert torch.equal(logits(base), first)
    assert torch.equal(logits(base, offloaded=1), first)
    assert len(quantised) == count


@pytest.mark.parametrize("damage", ["cut short", "one bit", "no hash", "another hash"])
def test_a_damaged_layer_is_made_again_and_the_others_are_not(
    damage: str, tmp_path: Path, quantised: list[int]
) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path / "base")
    base = open_checkpoint(tmp_path / "base")
    first = logits(base)
    (path,) = PACKED.glob("*/*/layer-001.safetensors")
    seal = path.with_suffix(".sha256")
    whole = path.read_bytes()
    if damage == "cut short":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "one bit":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "no hash":
        seal.unlink()
    else:
        seal.write_bytes(b"\xff")
    quantised.clear()
    assert torch.equal(logits(base), first)
    assert len(quantised) == 3 * 8
    assert path.read_bytes() == whole and seal.exists()


def test_another_base_or_other_code_is_another_cache(
    tmp_path: Path, quantised: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("one", "two")):
        tiny_model("mixtral", seed=seed).save_pretrained(tmp_path / name)
    one, two = (open_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert not torch.equal(logits(one), logits(two))
    assert len(list(PACKED.glob("*"))) == 2
    quantised.clear()
    monkeypatch.setattr(cache, "code_hashes", lambda *_: {"other": "code"})
    logits(one)
    assert len(quantised) == 2 * 3 * 8
    # The folder that nothing reads any more is gone.
    assert len(list(PACKED.glob("*/*"))) == 2


@pytest.mark.parametrize("counts", [[3, 0, 5, 1], [0, 0, 9, 0], [2, 2, 2, 2], [0, 0, 0, 0]])
def test_padded_groups_are_multiplied_as_grouped_ones(counts: list[int]) -> None:
    torch.manual_seed(0)
    ends = torch.tensor(counts).cumsum(0).int()
    rows, matrices = torch.randn(sum(counts), 8, requires_grad=True), torch.randn(4, 8, 16, requires_grad=True)
    found = []
    for padded in (False, True):
        rows.grad = matrices.grad = None
        out = Groups(ends, len(rows), padded=padded).product(rows, matrices)
        out.square().sum().backward()
        found.append((out.detach(), rows.grad, matrices.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_padding_takes_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    ends, rows, matrices = torch.tensor([2, 4]).int(), torch.randn(4, 8), torch.randn(2, 8, 16)
    batched: list[torch.Tensor] = []
    monkeypatch.setattr(torch, "bmm", lambda padded, _: batched.append(padded) or padded.new_zeros(2, 2, 16))
    for limit, times in ((4 * 16 * 4, 1), (4 * 16 * 4 - 1, 1)):
        monkeypatch.setattr(grouped, "PADDED", limit)
        Groups(ends, 4, padded=True).product(rows, matrices)
        assert len(batched) == times


@pytest.mark.parametrize(
    ("capability", "padded"), [((8, 0), True), ((8, 6), True), ((9, 0), False), ((10, 0), False), ((12, 0), True)]
)
def test_groups_are_padded_where_torch_has_no_kernel_for_them(
    capability: tuple[int, int], padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert grouped.pads(torch.device("cuda")) is padded
    assert not grouped.pads(torch.device("cpu"))


def test_layers_in_host_memory_are_spread_over_the_model() -> None:
    assert spread(0, 8) == []
    assert spread(2, 8) == [0, 4]
    assert spread(3, 8) == [0, 2, 5]
    assert spread(8, 8) == spread(10**6, 8) == list(range(8))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_host_memory_that_cannot_be_had_is_said_with_the_numbers(device: str) -> None:
    with pytest.raises(UserError, match=r"^1073741824\.00 GiB of host memory, .* of \S+ GiB are free \("):
        host_bytes(2**60, torch.device(device))
