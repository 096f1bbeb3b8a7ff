"""How far fine-tuning moves the router's choices: base and fine-tuned model on the same tokens, layer by layer.

The divergence of Jensen and Shannon (Lin 1991) between the two distributions of tokens over experts, in bits: 0 where
they are equal, 1 where no expert is shared. It is above 0 by chance alone, so each has a baseline: for every text at
random which of its two readings is called the base's (the null of no difference, exact for paired texts), many times.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.probing.reading import Reading


def jensen_shannon(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """JSD = H((p + q) / 2) - (H(p) + H(q)) / 2 in bits, of distributions (or counts) along the last axis."""
    p, q = (it / it.sum(axis=-1, keepdims=True) for it in (np.asarray(one, float), np.asarray(other, float)))
    return np.asarray(np.maximum(0.0, _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2))


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return -(p * np.log2(np.where(p > 0, p, 1.0))).sum(axis=-1)


def routing_shift(
    base: Reading, tuned: Reading, experts: int, layers: tuple[int, ...], permutations: int, seed: int
) -> Iterator[dict[str, Any]]:
    """A row a layer of `layers`: divergence, what chance alone gives, top-k overlap, and both loads.

    divergence_bits; chance_bits, chance_high_bits: mean and 95th percentile of the baseline; p_value: share of the
    baseline at least as large (with the observed one: it is never 0); overlap: mean share of a token's experts that
    both models choose; tokens: how many; base_load, tuned_load: share of the tokens' choices that each expert gets.
    """
    random = np.random.default_rng(seed)
    for place, layer in enumerate(layers):
        counts = np.stack([_counts(reading, place, experts) for reading in (base, tuned)])  # (2, texts, experts)
        observed = float(jensen_shannon(counts[0].sum(axis=0), counts[1].sum(axis=0)))
        swapped = random.random((permutations, counts.shape[1])) < 0.5
        first = swapped @ counts[1] + (~swapped) @ counts[0]
        chance = jensen_shannon(first, counts.sum(axis=(0, 1)) - first)
        same = [
            (one[place].unsqueeze(-1) == other[place].unsqueeze(-2)).any(dim=-1).float().mean(dim=-1)
            for one, other in zip(base.chosen, tuned.chosen, strict=True)
        ]
        loads = counts.sum(axis=1) / counts.sum(axis=(1, 2))[:, None]
        yield {
            "layer": layer,
            "divergence_bits": observed,
            "chance_bits": float(chance.mean()),
            "chance_high_bits": float(np.quantile(chance, 0.95)),
            "p_value": float((1 + (chance >= observed - 1e-12).sum()) / (1 + permutations)),
            "overlap": float(torch.cat(same).mean()),
            "tokens": sum(it.shape[1] for it in base.chosen),
            "base_load": [round(float(share), 6) for share in loads[0]],
            "tuned_load": [round(float(share), 6) for share in loads[1]],
        }


def _counts(reading: Reading, place: int, experts: int) -> NDArray[np.float64]:
    """(texts, experts): how many of a text's tokens were sent to each expert of a layer."""
    rows = [torch.bincount(it[place].flatten().long(), minlength=experts) for it in reading.chosen]
    return np.asarray(torch.stack(rows).double().numpy())
