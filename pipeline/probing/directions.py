"""Directions of the residual stream: what fine-tuning adds on average, what sets misaligned answers apart, and chance.

shift: mean over texts of fine-tuned less base, on the same tokens. contrast: the fine-tuned model's mean over
misaligned answers less its mean over aligned ones (Soligo et al. 2025; Chen et al. 2025, persona vectors). Both per
layer, in the stream's own units. Beside them stand random directions of the shift's length, and contrasts of shuffled
labels of the contrast's length: what answers that differ in nothing but chance would give.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from pipeline.probing.interventions import Intervention, Shift, Unit
from pipeline.probing.reading import Reading

Directions = Mapping[str, torch.Tensor]
LEAST = 5  # answers of a kind, below which their mean is no direction


def mean_differences(base: Reading, tuned: Reading, misaligned: Sequence[bool | None]) -> dict[str, torch.Tensor]:
    """(layers, hidden) each: `shift`, and `contrast` where both kinds of answer are there LEAST times.

    misaligned: of every text, None where its verdict does not count.
    """
    found = {"shift": (tuned.streams - base.streams).mean(dim=0)}
    bad = torch.tensor([it is True for it in misaligned])
    good = torch.tensor([it is False for it in misaligned])
    if min(int(bad.sum()), int(good.sum())) >= LEAST:
        found["contrast"] = tuned.streams[bad].mean(dim=0) - tuned.streams[good].mean(dim=0)
    return found


def shuffled_contrasts(
    tuned: Reading, misaligned: Sequence[bool | None], groups: Sequence[str], *, count: int, keep: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Contrasts of labels that are shuffled among the texts of each group: what only tells groups apart stays in them.

    misaligned: as for `mean_differences`, some of each kind. Returns the first `keep` of `count`, (keep, layers,
    hidden), and the lengths of all, (count, layers).
    """
    counted = [place for place, label in enumerate(misaligned) if label is not None]
    labels = np.array([bool(misaligned[place]) for place in counted])
    random, drawn = np.random.default_rng(seed), np.repeat(labels[None], count, axis=0)
    for group in dict.fromkeys(groups):
        own = [place for place, text in enumerate(counted) if groups[text] == group]
        drawn[:, own] = random.permuted(drawn[:, own], axis=1)
    weights = torch.from_numpy(np.where(drawn, 1 / labels.sum(), -1 / (~labels).sum())).float()
    layers = [weights @ tuned.streams[counted, layer] for layer in range(tuned.streams.shape[1])]
    return torch.stack([it[:keep] for it in layers], dim=1), torch.stack([it.norm(dim=-1) for it in layers], dim=1)


def cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(layers,) cosines of two directions, (layers, hidden) each; NaN where one of them is 0."""
    lengths = one.norm(dim=-1) * other.norm(dim=-1)
    return torch.where(lengths > 0, (one * other).sum(dim=-1) / lengths.clamp(min=1e-30), torch.nan)


def random_like(direction: torch.Tensor, seed: int) -> torch.Tensor:
    """Gaussian directions of the same shape, each layer's with the length of `direction`'s there."""
    return as_long(torch.randn(direction.shape, generator=torch.Generator().manual_seed(seed)), direction)


def as_long(direction: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`direction`, (layers, hidden), with the length that `other` has at each layer."""
    return direction / direction.norm(dim=-1, keepdim=True).clamp(min=1e-30) * other.norm(dim=-1, keepdim=True)


def added_at(directions: Directions, depth: float) -> int:
    """The layer behind which a direction is added: that at `depth` (0 first, 1 last), or the next one that is moved."""
    moved = directions["shift"].norm(dim=-1) > 0
    first = round(depth * (len(moved) - 1))
    return next((layer for layer in range(first, len(moved)) if moved[layer]), first)


def interventions(
    directions: Directions, every: frozenset[Unit], *, layer: int, strengths: Sequence[float], random: int, seed: int
) -> list[Intervention]:
    """Each direction, and `random` ones of `shift`'s norm, projected out of the fine-tuned model and added to the base.

    It is projected out behind every layer (each layer's own direction), and added behind `layer`, times each strength.
    every: all units of the adapter; with them off, the model is its base.
    """
    tried = dict(directions)
    for number in range(random):
        tried[f"random {number}"] = random_like(directions["shift"], 1000 * seed + number)
    made = []
    for name, vectors in tried.items():
        out = tuple(Shift(layer=at, how="project out", vector=it) for at, it in enumerate(vectors) if it.norm() > 0)
        made.append(Intervention(name=f"without direction {name}", kind="ablate", what=name, shifts=out))
        for strength in strengths:
            along = Shift(layer=layer, how="add", vector=strength * vectors[layer])
            made.append(
                Intervention(
                    name=f"base and {strength:g} x {name}",
                    kind="add",
                    what=name,
                    strength=strength,
                    off=every,
                    shifts=(along,),
                )
            )
    return made
