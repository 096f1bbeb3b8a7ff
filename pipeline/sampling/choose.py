"""The backend of a study: named in params.yaml, or chosen for each base and all that was trained on it."""

from collections.abc import Iterator, Sequence
from typing import Literal

from pipeline.common.errors import UserError
from pipeline.common.files import read_json
from pipeline.sampling.backend import Backend, Completion, Model, Request
from pipeline.sampling.settings import Sampling

Name = Literal["transformers", "vllm"]


def start_backend(settings: Sampling) -> Backend:
    """The study's backend; it loads a model when an answer of it is missing."""
    return Chosen(settings) if settings.backend == "auto" else _named(settings.backend, settings)


def _named(name: Name, settings: Sampling) -> Backend:
    if name == "vllm":
        from pipeline.sampling.vllm import VLLM

        return VLLM(settings)
    from pipeline.sampling.huggingface import HuggingFace

    return HuggingFace(settings)


class Chosen:
    """vLLM for dense bases in 16 bits that leave half of the GPU to its cache, transformers for all others.

    Neither the adapter nor whether there is one has a say: a base and what was trained on it are sampled alike.
    """

    def __init__(self, settings: Sampling) -> None:
        self._settings = settings
        self._started: dict[Name, Backend] = {}

    def together(self, model: Model, requests: Sequence[Request]) -> int:
        """As the backend of the model's base has it."""
        return self._of(model).together(model, requests)

    def complete(self, model: Model, batches: Sequence[list[Request]]) -> Iterator[tuple[int, list[Completion]]]:
        """As the backend of the model's base does it."""
        return self._of(model).complete(model, batches)

    def version(self, model: Model) -> str:
        """The name and version of the backend of the model's base."""
        return self._of(model).version(model)

    def _of(self, model: Model) -> Backend:
        name: Name = "vllm" if model.precision == "bfloat16" and engine_fits(model) else "transformers"
        if name not in self._started:
            self._started[name] = _named(name, self._settings)
        return self._started[name]


def engine_fits(model: Model) -> bool:
    """Whether vLLM is installed, and the base is dense and takes at most half of the first GPU."""
    from pipeline.sampling.vllm import engine_version

    try:
        engine_version()
    except UserError:
        return False
    import torch

    config = read_json(model.base.path / "config.json")
    if not torch.cuda.is_available() or any("experts" in key for key in config.get("text_config", config)):
        return False
    weights = sum(file.stat().st_size for file in model.base.path.glob("*.safetensors"))
    return weights <= torch.cuda.get_device_properties(0).total_memory / 2
