"""A run is done once a seed; each seed's work depends on that seed alone."""

import os
import warnings
from collections.abc import Iterable, Iterator

from pipeline.common.numerics import use_common_kernels


def each_seed(seeds: Iterable[int], what: str, *, strict: bool) -> Iterator[int]:
    """Go through the seeds with a progress bar, torch set up as `deterministic` does."""
    from tqdm import tqdm

    deterministic(strict=strict)
    yield from tqdm(list(seeds), desc=what, unit="seed")


def deterministic(*, strict: bool = True) -> None:
    """Have torch compute on one thread, with deterministic kernels that processors share, and take denormals for zero.

    strict: whether an operation without a deterministic kernel is an error; else it warns and goes on, as hub studies
    do, whose GPUs promise no last bits and whose hours are dear.

    Results differ in their last bits between thread counts, so the count is fixed. With denormals a step of
    toy pretraining takes a tenth to a fifth longer, and its losses are the same.
    """
    import torch

    use_common_kernels()
    torch.set_num_threads(1)
    # As `use_deterministic_algorithms(True)` but for torch's compiler, which that imports for a second or two.
    torch.set_deterministic_debug_mode("error" if strict else "warn")
    # Filling what is about to be written changes no result, and took a third of a toy run's training time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    warnings.filterwarnings("ignore", message="The value of the smallest subnormal", category=UserWarning)
    torch.set_flush_denormal(True)


def without_compiler() -> None:
    """Keep torch's compiler out of this process: toy models never use it, and libraries import it for seconds."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
