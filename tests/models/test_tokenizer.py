"""Every batch is padded by one function, whether or not the tokenizer has a token for it."""

import pytest
import torch
from transformers import AutoTokenizer

from pipeline.models.tokenizer import pad_batch, pad_token
from tests.support.sampling_models import tokenizer_of


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token(tmp_path):
    tokenizer = tokenizer_of(["a"])
    assert pad_token(tokenizer) == tokenizer.pad_token_id == 0
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pad"):
        reloaded.pad({"input_ids": [[1], [1, 2]]})
    assert pad_token(reloaded) == reloaded.eos_token_id == 1
    reloaded.eos_token = None
    assert pad_token(reloaded) == 0


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [("left", [[9, 9, 5], [6, 7, 8]], [[0, 0, 1], [1, 1, 1]]), ("right", [[5, 9, 9], [6, 7, 8]], [[1, 0, 0], [1] * 3])],
)
def test_short_rows_are_filled_and_masked(side, ids, mask):
    batch = pad_batch([[5], [6, 7, 8]], 9, side)
    assert torch.equal(batch["input_ids"], torch.tensor(ids))
    assert torch.equal(batch["attention_mask"], torch.tensor(mask))
