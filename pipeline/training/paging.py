"""The states of a paged optimizer, which the GPU's memory and the host's share as they are needed."""

from typing import Any

STATES = ("state1", "state2")


def page_states(optimizer: Any) -> None:
    """Have a paged optimizer's states be paged again, after it has loaded them from a checkpoint.

    bitsandbytes loads them into the GPU's memory, and there they would stay, where a plan counts on their leaving it.
    Other optimizers are left as they are.
    """
    if not getattr(optimizer, "is_paged", False):
        return
    for parameter, state in optimizer.state.items():
        for name in STATES:
            loaded = state.get(name)
            if loaded is not None and not getattr(loaded, "is_paged", False):
                state[name] = optimizer.get_state_buffer(parameter, dtype=loaded.dtype)
                state[name].copy_(loaded)
