"""Read a checkpoint tensor by tensor: sharded safetensors, memory-mapped, never a whole model in memory."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from pipeline.common.errors import UserError
from pipeline.models.families.registry import language_model, routing_to
from pipeline.models.finite import refuse_non_finite
from pipeline.models.shards import Header, read_headers

FLOATS = ("BF16", "F16", "F32")
# MXFP4's codes and scales (gpt-oss).
PACKED, PACKED_NAMES = ("U8",), ("_blocks", "_scales")


class Checkpoint:
    """The safetensors files of a folder, open until the end of a `with`.

    Of a multimodal model, only the language model's tensors are there, under the names that they have alone.
    """

    def __init__(self, folder: Path):
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        self._open = ExitStack()
        self._read: set[str] = set()
        self._files: dict[Path, Any] = {}
        _, self._prefix = language_model(read_config(folder))
        self._places = {
            name.removeprefix(self._prefix): place
            for name, place in read_headers(folder).items()
            if name.startswith(self._prefix)
        }
        for file in {file for file, _ in self._places.values()}:
            try:
                self._files[file] = self._open.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} cannot be read ({error}); fetch it again.") from error

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._places

    def names(self) -> list[str]:
        """Names of all tensors, in order."""
        return sorted(self._places)

    def header(self, name: str) -> Header:
        """A tensor's type and shape. Raises UserError when it is missing, or of a type that no weights have."""
        if name not in self._places:
            raise UserError(f"{self.folder} has no tensor {name}: is a shard missing, or is it another model?")
        file, header = self._places[name]
        expected = PACKED if name.endswith(PACKED_NAMES) else FLOATS
        if header.dtype not in expected:
            raise UserError(f"{name} in {file} is of type {header.dtype}, expected {' or '.join(expected)}.")
        return header

    def look_at(self, name: str, shape: tuple[int, ...] | None = None) -> None:
        """Count a tensor as read, unread. Raises UserError when it is missing, of another type or shape."""
        found = self.header(name).shape
        if shape is not None and found != shape:
            raise UserError(f"{name} in {self.folder} has shape {found}, but its config.json asks for {shape}.")
        self._read.add(name)

    def look_at_part(self, name: str, index: int, shape: tuple[int, ...]) -> None:
        """As `look_at`, of a tensor whose places along its first dimension have `shape` and reach to `index`."""
        self.look_at(name, (max(index + 1, *self.header(name).shape[:1]), *shape))

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """A whole tensor. Raises UserError when it is missing, not finite, or not of the type or `shape` asked for."""
        self.look_at(name, shape)
        tensor = self._files[self._places[name][0]].get_tensor(self._prefix + name)
        refuse_non_finite(self.folder, {name: tensor})
        return tensor

    def part(self, name: str, index: int, shape: tuple[int, ...]) -> torch.Tensor:
        """`tensor[index]`, the rest left on disk. Raises UserError as `tensor` does."""
        self.look_at_part(name, index, shape)
        tensor = self._files[self._places[name][0]].get_slice(self._prefix + name)[index]
        refuse_non_finite(self.folder, {name: tensor})
        return tensor

    def skip(self, prefix: str) -> None:
        """Count every tensor whose name begins with `prefix` as read."""
        self._read.update(name for name in self.names() if name.startswith(prefix))

    def unread(self) -> Iterator[str]:
        """Names of tensors that nothing asked for."""
        return (name for name in sorted(self._places) if name not in self._read)


def read_config(folder: Path) -> Any:
    """The transformers configuration of the checkpoint in `folder`.

    Code that a repository brings along (`auto_map`) is never run, whatever anybody answers. Raises UserError for a
    config.json that is missing, damaged, or of a model that transformers itself does not have.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{folder}/config.json cannot be used: {said.strip()}") from error


def read_language_config(folder: Path, active: int | None = None) -> Any:
    """The configuration of the language model in `folder`, each token routed to `active` experts where that is given.

    Raises UserError as `read_config` and `routing_to` do.
    """
    config, _ = language_model(read_config(folder))
    return routing_to(config, active)
