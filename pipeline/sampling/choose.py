"""The backend of a study, by the name that params.yaml gives it.

A base and all that was trained on it are sampled by the same one, as parameters of a study are its runs'.
"""

from pipeline.sampling.backend import Backend
from pipeline.sampling.settings import Sampling


def start_backend(settings: Sampling) -> Backend:
    """The study's backend; it loads a model when an answer of it is missing."""
    if settings.backend == "vllm":
        from pipeline.sampling.vllm import VLLM

        return VLLM(settings)
    from pipeline.sampling.huggingface import HuggingFace

    return HuggingFace(settings)
