"""A step's rows in micro-batches of so many tokens: nothing is lost, little is padding, the gradient is the same."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import set_seed

from pipeline.models.adapters import adapter_tensors, attach
from pipeline.models.spec import AdapterSpec
from pipeline.training.microbatches import group_by_length, micro_batches
from pipeline.training.plan import Batching
from pipeline.training.sft import sft_trainer
from pipeline.training.tokens import IGNORED, TokenRow, TokenRows
from tests.support.tiny_models import TRAINING, byte_tokenizer, tiny_model


@settings(deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40), tokens=st.integers(1, 2000))
def test_every_row_is_in_one_group_within_the_budget(lengths: list[int], tokens: int) -> None:
    groups = group_by_length(lengths, tokens)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[place] for place in group) <= tokens
    # Neighbours could not be joined: no group is smaller than it has to be.
    for group, following in itertools.pairwise(groups):
        assert (len(group) + 1) * lengths[group[0]] > tokens
        assert lengths[group[-1]] >= lengths[following[0]]


def test_parts_are_the_batch_without_its_padding() -> None:
    lengths = [3, 9, 4]
    batch = {name: torch.zeros(3, 9, dtype=torch.long) for name in ("input_ids", "attention_mask", "labels")}
    for row, length in enumerate(lengths):
        batch["attention_mask"][row, :length] = 1
        batch["input_ids"][row, :length] = row + 1
    parts = micro_batches(batch, 9)
    assert [part["input_ids"].tolist() for part in parts] == [[[2] * 9], [[3, 3, 3, 3], [1, 1, 1, 0]]]
    assert all(part[name].shape == part["input_ids"].shape for part in parts for name in batch)


def rows_of(lengths: list[int]) -> TokenRows:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in lengths:
        ids = torch.randint(3, 250, (length,), generator=generator).tolist()
        rows.append(TokenRow(input_ids=ids, labels=[IGNORED] * (length // 3) + ids[length // 3 :]))
    train, validation = tuple(rows), tuple(rows[:5])
    return TokenRows(train=train, validation=validation, max_tokens=64, given=len(rows), cut=0, dropped=0)


@pytest.mark.parametrize("router", ["frozen", "free_kl"])
def test_a_step_is_the_same_in_micro_batches_and_at_once(router: str, tmp_path: Path) -> None:
    """Every token weighs the same: losses, validation and trained values agree to fp32's last bits."""
    rows = rows_of([5, 41, 17, 33, 8, 60, 12, 29])
    results = []
    for tokens in (None, 64):
        set_seed(1)
        spec = AdapterSpec(rank=2, alpha=8, experts=(0, 3), attention=True, router=router)  # type: ignore[arg-type]
        model = attach(tiny_model("qwen3_moe", "fused"), spec, seed=1)
        trainer = sft_trainer(
            model,
            byte_tokenizer(),
            rows,
            TRAINING,
            Batching(rows=8, tokens=tokens, optimizer="adamw_torch", offload=False),
            seed=1,
            checkpoints=tmp_path / str(tokens),
            what="test",
            router_kl=1.0 if router == "free_kl" else None,
        )
        trainer.train()
        losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        results.append((trainer.state.log_history[-1]["train_loss"], losses, adapter_tensors(model)))
    (whole_loss, whole_validation, whole), (loss, validation, tensors) = results
    assert loss == pytest.approx(whole_loss, rel=1e-5) and validation == pytest.approx(whole_validation, rel=1e-4)
    moved = max(float(tensor.abs().max()) for name, tensor in whole.items() if "lora_B" in name)
    assert moved > 1e-3
    for name, tensor in whole.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=2e-2 * moved, msg=name)
    assert len(list((tmp_path / "64").glob("checkpoint-*"))) <= 2
