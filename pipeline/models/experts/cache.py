"""A base's experts in NF4, kept on disk: quantised once per machine, then read by training and sampling alike.

A folder per base and per everything else that determines the bytes: the code that packs, the libraries that quantise,
the kind of device. A file per layer, with the hash of its bytes beside it, which is written last: what a kill cut
short, or a disk damaged, is found out when it is read, and made again. Of a base only the newest folder is kept.
"""

from __future__ import annotations  # whoever asks what is kept imports no torch

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.files import atomic_path, sha256_file, sha256_json, write_text
from pipeline.common.fingerprints import code_hashes, library_versions

if TYPE_CHECKING:
    import torch

    from pipeline.models.experts.stacks import PackedExperts

# What decides which bytes come out for a checkpoint.
CODE = ("models/experts/stacks.py", "models/experts/build.py", "models/families")
LIBRARIES = ("torch", "transformers", "bitsandbytes")


def kept_bytes(folder: Path, hashes: Mapping[str, str]) -> int:
    """Bytes of the packed layers in `folder` of the base whose files have these hashes: its next ones replace them."""
    layers = _folder_of(folder, hashes).glob("*/layer-*.safetensors")
    return sum(path.stat().st_size for path in layers if path.with_suffix(".sha256").exists())


def _folder_of(folder: Path, hashes: Mapping[str, str]) -> Path:
    files = {name: digest for name, digest in hashes.items() if name.endswith((".safetensors", "config.json"))}
    return folder / sha256_json(files)[:16]


class PackedCache:
    """The packed layers of one base; `hashes` are those of its files."""

    def __init__(self, folder: Path, hashes: Mapping[str, str], dtype: torch.dtype, device: torch.device) -> None:
        versions = library_versions()
        how = [code_hashes(*CODE), {name: versions[name] for name in LIBRARIES}, str(dtype), device.type]
        self._base = _folder_of(folder, hashes)
        self._folder = self._base / sha256_json(how)[:16]

    def read(self, layer: int, packed: PackedExperts) -> dict[str, torch.Tensor] | None:
        """Fill `packed` with a layer's bytes and return its biases by stack; None where they are missing or damaged."""
        from safetensors.torch import load_file

        path, seal = self._paths(layer)
        if not (path.exists() and seal.exists()) or seal.read_bytes() != sha256_file(path).encode():
            return None
        tensors = load_file(path)
        packed.bytes().copy_(tensors.pop("run"))
        packed.table = tensors.pop("table").to(packed.device)
        return tensors

    def write(self, layer: int, packed: PackedExperts, biases: Mapping[str, torch.Tensor]) -> None:
        """Keep a layer's bytes and biases. Raises UserError when the disk is full."""
        from safetensors.torch import save_file

        for other in self._base.glob("*"):
            if other != self._folder:
                shutil.rmtree(other, ignore_errors=True)
        path, seal = self._paths(layer)
        tensors = {"run": packed.bytes(), "table": packed.table, **biases}
        with atomic_path(path) as temporary:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        write_text(seal, sha256_file(path))

    def _paths(self, layer: int) -> tuple[Path, Path]:
        path = self._folder / f"layer-{layer:03}.safetensors"
        return path, path.with_suffix(".sha256")
