"""The files of a checkpoint's weights: which they are, and what their headers say. No weight is read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import read_json

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
# safetensors' own bound.
MOST_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Header:
    """A tensor as its file's header describes it; `dtype` by safetensors' names (BF16, U8, ...)."""

    dtype: str
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights: those that its index names, or the one that is all. Others are ignored.

    Raises UserError when there are none, or the index is damaged or names files that are not there.
    """
    index = folder / INDEX
    if not index.exists():
        if not (folder / WHOLE).exists():
            raise UserError(f"{folder} holds no {WHOLE} and no {INDEX}: it is no checkpoint that can be loaded.")
        return [folder / WHOLE]
    names = sorted(set(weight_map(folder).values()))
    absent = [name for name in names if not (folder / name).exists()]
    if absent:
        raise UserError(
            f"{index} names {len(names)} files of weights, of which {len(absent)} are not there, such as {absent[0]}; "
            "fetch the checkpoint again."
        )
    return [folder / name for name in names]


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor -> file, as a sharded checkpoint's index says. Raises UserError for an index that is damaged."""
    index = folder / INDEX
    found = read_json(index)
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not places or not all(_is_file_name(name) for name in places.values()):
        raise UserError(f"{index} maps no tensors to files (weight_map): it is damaged; fetch the checkpoint again.")
    return places


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name


def read_header(file: Path) -> dict[str, Header]:
    """The tensors of a safetensors file. Raises UserError when it is cut short, or is no such file."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(MOST_HEADER_BYTES, size):
                raise ValueError(f"a header of {length:,} bytes")
            entries = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        headers = {name: Header(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}
        needed = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read: it has {size:,} bytes and {error}; fetch it again.") from error
    if size != needed:
        raise UserError(
            f"{file} cannot be read: it has {size:,} bytes, its header asks for {needed:,}; fetch it again."
        )
    return headers


def read_headers(folder: Path) -> dict[str, tuple[Path, Header]]:
    """Every tensor of a checkpoint: its file, and what the file's header says of it.

    Raises UserError as `weight_files` and `read_header` do, and when a file lacks tensors that the index places in it.
    """
    found = {name: (file, header) for file in weight_files(folder) for name, header in read_header(file).items()}
    if (folder / INDEX).exists():
        places = weight_map(folder)
        lost = [name for name, file in places.items() if name not in found or found[name][0].name != file]
        if lost:
            raise UserError(
                f"{folder / INDEX} names {len(places):,} tensors, of which {len(lost):,} are not where it says, such "
                f"as {lost[0]} in {places[lost[0]]}; fetch the checkpoint again."
            )
    return found
