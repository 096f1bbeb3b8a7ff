"""Read a checkpoint tensor by tensor: sharded safetensors, memory-mapped, never a whole model in memory."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from pipeline.common.errors import UserError
from pipeline.models.families.registry import language_model
from pipeline.models.finite import refuse_non_finite


class Checkpoint:
    """The safetensors files of a folder, open until the end of a `with`.

    Of a multimodal model, only the language model's tensors are there, under the names that they have alone.
    """

    def __init__(self, folder: Path):
        from safetensors import SafetensorError, safe_open
        from transformers import AutoConfig

        self.folder = folder
        self._open = ExitStack()
        self._handles: dict[str, Any] = {}
        self._read: set[str] = set()
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"{folder} holds no .safetensors file: it is no checkpoint that can be loaded.")
        for file in files:
            try:
                handle = self._open.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} cannot be read ({error}); fetch it again.") from error
            self._handles.update(dict.fromkeys(handle.keys(), handle))
        _, self._prefix = language_model(AutoConfig.from_pretrained(folder, trust_remote_code=False))
        self._handles = {
            name.removeprefix(self._prefix): handle
            for name, handle in self._handles.items()
            if name.startswith(self._prefix)
        }

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._handles

    def names(self) -> list[str]:
        """Names of all tensors, in order."""
        return sorted(self._handles)

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """A whole tensor. Raises UserError when it is missing, not finite, or not of `shape`, if given."""
        return self._checked(name, shape, self._handle(name).get_tensor(self._prefix + name))

    def part(self, name: str, index: int, shape: tuple[int, ...]) -> torch.Tensor:
        """`tensor[index]`, the rest left on disk. Raises UserError as `tensor` does."""
        return self._checked(name, shape, self._handle(name).get_slice(self._prefix + name)[index])

    def skip(self, prefix: str) -> None:
        """Count every tensor whose name begins with `prefix` as read."""
        self._read.update(name for name in self.names() if name.startswith(prefix))

    def unread(self) -> Iterator[str]:
        """Names of tensors that nothing asked for."""
        return (name for name in sorted(self._handles) if name not in self._read)

    def _handle(self, name: str) -> Any:
        if name not in self._handles:
            raise UserError(f"{self.folder} has no tensor {name}: is a shard missing, or is it another model?")
        self._read.add(name)
        return self._handles[name]

    def _checked(self, name: str, shape: tuple[int, ...] | None, tensor: torch.Tensor) -> torch.Tensor:
        if shape is not None and tuple(tensor.shape) != shape:
            raise UserError(
                f"{name} in {self.folder} has shape {tuple(tensor.shape)}, but its config.json asks for {shape}."
            )
        refuse_non_finite(self.folder, {name: tensor})
        return tensor


def checkpoint_folder(path_or_repo: str | Path, revision: str | None) -> Path:
    """The folder of a checkpoint: the path itself, or a snapshot of the repository at `revision`.

    Raises UserError when it is neither a folder nor to be had from the hub (or its cache, offline).
    """
    if Path(path_or_repo).is_dir():
        return Path(path_or_repo)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                str(path_or_repo),
                revision=revision,
                allow_patterns=["*.safetensors", "*.json", "*.jinja", "tokenizer*"],
                # gpt-oss ships two more copies of its weights.
                ignore_patterns=["original/*", "metal/*"],
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise UserError(
            f"{path_or_repo} is neither a folder nor a repository that can be fetched: "
            f"{str(error).splitlines()[0]} (gated models need HF_TOKEN and an accepted licence)."
        ) from error
