"""A paged optimizer's states after a resume; a stand-in, as CPUs have no such memory: no test copies to it."""

import pytest
import torch
from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

from pipeline.training.paging import STATES, page_states


class Paged(torch.Tensor):
    """Memory that counts as paged."""

    is_paged = True


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize(("optimizer", "paged"), [(PagedAdamW8bit, True), (AdamW8bit, False)])
def test_states_that_were_loaded_are_paged_again(optimizer, paged, monkeypatch):
    parameter = torch.nn.Parameter(torch.ones(64, 128))
    before, after = optimizer([parameter]), optimizer([parameter])
    parameter.grad = torch.full_like(parameter, 0.5)
    before.step()
    after.load_state_dict(before.state_dict())
    monkeypatch.setattr(after, "get_state_buffer", lambda p, dtype: torch.zeros_like(p, dtype=dtype).as_subclass(Paged))
    page_states(after)
    held, loaded = before.state[parameter], after.state[parameter]
    for name in STATES:
        assert torch.equal(held[name], loaded[name].as_subclass(torch.Tensor)) and held[name].any()
        assert getattr(loaded[name], "is_paged", False) is paged
