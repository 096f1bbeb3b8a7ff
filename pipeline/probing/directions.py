"""Directions of the residual stream: what fine-tuning adds on average, what sets misaligned answers apart, and chance.

shift: mean over texts of fine-tuned less base, on the same tokens. contrast: the fine-tuned model's mean over
misaligned answers less its mean over aligned ones (Soligo et al. 2025; Chen et al. 2025, persona vectors). Both per
layer, in the stream's own units. A random direction has the length of the shift, beside which it stands.
"""

from collections.abc import Mapping, Sequence

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


def cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(layers,) cosines of two directions, (layers, hidden) each; NaN where one of them is 0."""
    lengths = one.norm(dim=-1) * other.norm(dim=-1)
    return torch.where(lengths > 0, (one * other).sum(dim=-1) / lengths.clamp(min=1e-30), torch.nan)


def random_like(direction: torch.Tensor, seed: int) -> torch.Tensor:
    """Gaussian directions of the same shape, each layer's with the length of `direction`'s there."""
    drawn = torch.randn(direction.shape, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=-1, keepdim=True) * direction.norm(dim=-1, keepdim=True)


def added_at(directions: Directions, depth: float) -> int:
    """The layer behind which a direction is added: that at `depth` (0 first, 1 last), or the next one that is moved."""
    moved = directions["shift"].norm(dim=-1) > 0
    first = round(depth * (len(moved) - 1))
    return next((layer for layer in range(first, len(moved)) if moved[layer]), first)


def interventions(
    directions: Directions, every: frozenset[Unit], *, layer: int, strengths: Sequence[float], random: int, seed: int
) -> list[Intervention]:
    """Each direction, and `random` ones of equal norm, projected out of the fine-tuned model and added to the base.

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
