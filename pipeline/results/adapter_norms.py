"""How much an adapter changes each expert: Frobenius norms of scaling * B @ A, from its files alone."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import UserError
from pipeline.common.files import read_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

_NAME = re.compile(r"(?P<module>.*\blayers\.(?P<layer>\d+)\..+)\.lora_(?P<half>[AB])\.weight$")
_EXPERT = re.compile(r"\bexperts\.(\d+)\.")
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit


def adapter_norms(folder: Path) -> pd.DataFrame:
    """One row a LoRA pair of a PEFT adapter: `layer`, `expert` (NA outside experts), `module`, `norm`.

    `folder` holds adapter_model.safetensors (fp64, fp32, fp16 or bf16) and adapter_config.json, of any
    family whose names have `layers.N` and, for experts, `experts.N`. `norm` is the Frobenius norm of
    scaling * B @ A with A (rank, in) and B (out, rank), by ||BA||^2 = <B'B, AA'>, which never makes the
    (out, in) product; scaling = alpha / rank, or alpha / sqrt(rank) with rank stabilisation (Kalajdzievski
    2023). Raises UserError when a file is missing, damaged or holds no LoRA pair.
    """
    import pandas as pd

    config = read_json(folder / "adapter_config.json")
    halves: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name, tensor in read_matrices(folder / "adapter_model.safetensors"):
        if found := _NAME.match(name):
            # The Gram matrix alone is kept: rank x rank, however large the model.
            gram = tensor @ tensor.T if found["half"] == "A" else tensor.T @ tensor
            halves.setdefault(found["module"], {})[found["half"]] = gram
    rows = []
    for module, grams in halves.items():
        if len(grams) != 2:
            raise UserError(f"{folder}: {module} has lora_{next(iter(grams))} and not the other half.")
        expert, layer = _EXPERT.search(module), re.search(r"\blayers\.(\d+)\.", module)
        squared = float((grams["A"] * grams["B"]).sum())
        rows.append(
            {
                "layer": int(layer[1]) if layer else -1,
                "expert": int(expert[1]) if expert else None,
                "module": module.rpartition(".")[2],
                "norm": _scaling(config, module, len(grams["A"])) * math.sqrt(max(squared, 0.0)),
            }
        )
    if not rows:
        raise UserError(f"{folder} holds no LoRA pair of a layer; is it a PEFT adapter?")
    frame = pd.DataFrame(rows).astype({"expert": "Int64"})
    return frame.sort_values(["layer", "expert", "module"], ignore_index=True)


def _scaling(config: dict[str, Any], module: str, rank: int) -> float:
    alpha = config.get("lora_alpha")
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    if not isinstance(alpha, int | float):
        raise UserError(f"adapter_config.json has lora_alpha {alpha!r}, expected a number.")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def read_matrices(path: Path) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Name and value of every matrix, one in memory at a time. numpy's own reader has no bfloat16."""
    import numpy as np

    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                raise UserError(f"{path} is no safetensors file, or was cut short.")
            header = json.loads(stream.read(length))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; run the stage that makes it.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is no safetensors file: its header is not JSON.") from error
    data = np.memmap(path, mode="r", offset=8 + length) if size > 8 + length else np.empty(0, "u1")
    for name in sorted(header.keys() - {"__metadata__"}):
        about = header[name]
        if about["dtype"] not in _FLOATS or len(about["shape"]) != 2:
            continue
        start, stop = about["data_offsets"]
        if stop > len(data):
            raise UserError(f"{path} ends before the values of {name}: it was cut short.")
        values = np.frombuffer(data[start:stop], dtype=_FLOATS[about["dtype"]])
        if about["dtype"] == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        yield name, values.reshape(about["shape"]).astype(np.float64)
