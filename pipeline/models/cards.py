"""GPUs by what limits training and sampling on them, from their makers' data sheets.

No torch: plans and estimates are made before it is imported, and for cards that are not here.
"""

import re
from dataclasses import dataclass

from pipeline.common.errors import UserError
from pipeline.common.machine import AMPERE, Gpu

GIB = 2**30
TERA, GIGA = 1e12, 1e9
# Shares of a data sheet's rates that large kernels and copies reach.
PRODUCTS, BANDWIDTH, PCIE = 0.5, 0.8, 0.9


@dataclass(frozen=True)
class Rates:
    """Bytes a second that are reached: between a GPU and its memory, and from host memory to it."""

    memory: float
    copies: float


# Of a card that is not known: about the slowest that is planned for.
SLOW = Rates(9e11, 2e10)


@dataclass(frozen=True)
class Card:
    """One kind of GPU: memory in bytes; dense bfloat16 products summed in float32, a second; bytes a second."""

    name: str
    memory: int
    products: float
    bandwidth: float
    pcie: float

    @property
    def rates(self) -> Rates:
        """What is reached of its memory's and its bus's."""
        return Rates(BANDWIDTH * self.bandwidth, PCIE * self.pcie)


def _card(name: str, gib: float, tflops: float, gigabytes: float, pcie: float) -> Card:
    return Card(name, round(gib * GIB), tflops * TERA, gigabytes * GIGA, pcie * GIGA)


# GiB that can be had, TFLOP/s, GB/s of memory, GB/s of PCIe (x16, about four fifths of its nominal rate). Consumer
# cards sum in float32 at half the rate that is advertised.
CARDS = {
    "3090": _card("RTX 3090", 23.5, 71, 936, 25),
    "4090": _card("RTX 4090", 23.5, 165, 1008, 25),
    "5090": _card("RTX 5090", 31.3, 209, 1792, 50),
    "a10": _card("A10", 22.0, 125, 600, 25),
    "l4": _card("L4", 22.0, 121, 300, 25),
    "a6000": _card("RTX A6000", 47.5, 155, 768, 25),
    "l40s": _card("L40S", 44.4, 362, 864, 25),
    "a100-40": _card("A100 40GB", 39.4, 312, 1555, 25),
    "a100": _card("A100 80GB", 79.1, 312, 1935, 25),
    "h100": _card("H100 80GB", 79.1, 989, 3350, 50),
    "h200": _card("H200", 139.8, 989, 4800, 50),
}


def card_named(name: str) -> Card:
    """A card by its short name. Raises UserError listing those there are."""
    if name.lower() not in CARDS:
        raise UserError(f"GPU {name!r} is unknown; there are {', '.join(CARDS)}.")
    return CARDS[name.lower()]


def key_of(name: str) -> str | None:
    """The short name of a GPU that nvidia-smi calls `name`; None where it is not known."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((key for key in CARDS if key in words), None)


def rates_of(name: str) -> Rates:
    """The rates of a GPU that its driver calls `name`: the same wherever and whenever they are asked for."""
    key = key_of(name)
    return SLOW if key is None else CARDS[key].rates


def card_of(found: tuple[Gpu, ...]) -> Card | None:
    """The first usable GPU of this machine, with its own memory; None where there is none that is known."""
    gpu = next((gpu for gpu in found if gpu.capability >= AMPERE and gpu.memory), None)
    if gpu is None or gpu.memory is None:
        return None
    key = key_of(gpu.name)
    if key is None:
        return None
    sheet = CARDS[key]
    return Card(gpu.name, gpu.memory, sheet.products, sheet.bandwidth, sheet.pcie)
