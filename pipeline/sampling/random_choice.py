"""Random choice that belongs to a request, not to a batch.

Every request has its own stream of uniform numbers, seeded by what it asks for. A token is the inverse of
the cumulative distribution at the stream's next number, so neither the batch's order nor its other
members change what a request is asked (floating-point sums may still differ in the last bit between
batches of different shape; see README, "Determinism").
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

# Logits whose distributions are held at once, in double precision.
CHOICE = 2**24


def request_seed(run: str, seed: int, suite: str, prompt_id: str, sample: int) -> int:
    """A 63-bit seed from a row's key."""
    key = "\n".join([run, str(seed), suite, prompt_id, str(sample)])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def uniforms(seeds: list[int], length: int) -> NDArray[np.float64]:
    """(requests, length) numbers in [0, 1), row i from `seeds[i]` alone (NumPy's Philox generator)."""
    import numpy as np

    return np.stack([np.random.Generator(np.random.Philox(seed)).random(length) for seed in seeds])


def choose(scores: torch.Tensor, points: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """One token a row: (rows, vocabulary) logits and (rows,) uniform points -> (rows,) token ids.

    Temperature 0 is greedy. `top_p` keeps the smallest set of tokens whose probability reaches it
    (nucleus sampling, Holtzman et al. 2020).
    """
    import torch

    if temperature == 0:
        return scores.argmax(dim=-1)
    rows = max(1, CHOICE // scores.shape[-1])
    if len(scores) > rows:
        parts = zip(scores.split(rows), points.split(rows), strict=True)
        return torch.cat([choose(some, at, temperature, top_p) for some, at in parts])
    chances = torch.softmax(scores.double() / temperature, dim=-1)
    if top_p < 1:
        ordered, order = chances.sort(dim=-1, descending=True, stable=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= top_p
        chances = chances.scatter(-1, order, ordered.masked_fill(beyond, 0.0))
    totals = chances.cumsum(dim=-1)
    targets = points.to(totals)[:, None] * totals[:, -1:]
    # right=True: a token of probability zero is never chosen, not even at point 0.
    return torch.searchsorted(totals, targets, right=True).squeeze(-1).clamp(max=scores.shape[-1] - 1)
