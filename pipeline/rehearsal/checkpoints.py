"""A checkpoint of true width with few layers and random weights, under the names that the hub's has, in shards.

Laid out as a commit in a Hugging Face cache, list of files and all: what `pin@BASE` then does is what it does with a
real repository that was fetched before.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.common.files import sha256_file
from pipeline.models.anatomy import Anatomy
from pipeline.models.families.registry import anatomy_of
from pipeline.models.hub import LFS_POINTER
from pipeline.models.known import KNOWN
from pipeline.models.shards import INDEX
from pipeline.rehearsal.tokenizers import write_tokenizer

REVISION = "0" * 39 + "1"
# By what widths are divided; multiples of 64 stay, in which NF4 and MXFP4 divide rows.
DIVISORS = {"true": 1, "reduced": 8, "tiny": 32}
# Tokens that a narrower model knows at most, where its tokenizer is a stand-in: the loss over Qwen3's 151,936 takes 38
# seconds a step of 800 tokens on a processor's core, whatever the model's width.
VOCABULARY = 8192
SCALE = 0.02
WIDTHS = ("hidden_size", "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")


def narrow(fields: dict[str, Any], width: str, layers: int) -> dict[str, Any]:
    """A config's fields with few layers, beside DeepSeek's dense first ones; where asked, narrower and of fewer tokens.

    The experts' numbers stay.
    """
    divisor = DIVISORS[width]
    fields = fields | {"num_hidden_layers": fields.get("first_k_dense_replace", 0) + layers}
    if divisor == 1:
        return fields
    heads = 2 ** int(math.log2(max(1, fields["num_attention_heads"] // divisor)))
    keys = max(1, min(heads, fields["num_key_value_heads"] // divisor))
    narrower: dict[str, Any] = {name: 64 * math.ceil(fields[name] / divisor / 64) for name in WIDTHS if name in fields}
    if fields["model_type"] != "mixtral":
        narrower["vocab_size"] = min(fields["vocab_size"], VOCABULARY)
    # DeepSeek's heads have parts of their own sizes, which stay.
    head = {} if "qk_rope_head_dim" in fields else {"head_dim": 64}
    return fields | narrower | {"num_attention_heads": heads, "num_key_value_heads": keys} | head


def write_repository(hub_cache: Path, repository: str, revision: str, fields: dict[str, Any], seed: int) -> str:
    """Write the repository's commit into a Hugging Face cache; returns what its tokenizer is, in words.

    revision: whose tokenizer is used, where it is in this machine's own cache.
    """
    from transformers import AutoConfig

    root = hub_cache / f"models--{repository.replace('/', '--')}"
    folder = root / "snapshots" / REVISION
    folder.mkdir(parents=True, exist_ok=True)
    whole = fields["vocab_size"] == KNOWN[repository]["vocab_size"]
    tokenizer = write_tokenizer(folder, repository, revision, fields["model_type"], fields["vocab_size"], whole=whole)
    sizes = {name: value for name, value in fields.items() if name not in ("model_type", "quantization_config")}
    config: Any = AutoConfig.for_model(fields["model_type"], **sizes)
    config.architectures = [_architecture(config.model_type)]
    config.save_pretrained(folder)
    if "quantization_config" in fields:
        written = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(
            json.dumps(written | {"quantization_config": fields["quantization_config"]})
        )
    _write_shards(folder, config, seed)
    _list_files(root, folder)
    return tokenizer


def _architecture(model_type: str) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])


def _write_shards(folder: Path, config: Any, seed: int) -> None:
    """One shard a layer, and one for the rest; the index last."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    places: dict[str, str] = {}
    count = config.num_hidden_layers + 1
    for number, shard in enumerate(_shards(config, generator), start=1):
        file = f"model-{number:05}-of-{count:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, file))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _shards(config: Any, generator: torch.Generator) -> Iterator[dict[str, torch.Tensor]]:
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    anatomy = anatomy_of(config)
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
        for layer in anatomy.moe_layers:
            model.get_submodule(anatomy.block_path(layer)).experts = torch.nn.Identity()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    for layer in range(anatomy.layers):
        prefix = f"model.layers.{layer}."
        shard = {
            anatomy.checkpoint_name(name): _random(shape, name, generator)
            for name, shape in shapes.items()
            if name.startswith(prefix)
        }
        if layer in anatomy.moe_layers:
            shard |= _experts(anatomy, layer, generator)
        yield shard
    yield {name: _random(shape, name, generator) for name, shape in shapes.items() if ".layers." not in name}


def _random(shape: tuple[int, ...], name: str, generator: torch.Generator) -> torch.Tensor:
    """Norms of about one, everything else about zero."""
    values = torch.randn(shape, generator=generator, dtype=torch.bfloat16) * SCALE
    return values + 1 if "norm" in name else values


def _experts(anatomy: Anatomy, layer: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A layer's experts as the family's checkpoints on the hub hold them."""
    prefix = anatomy.checkpoint_name(anatomy.experts_path(layer))
    if anatomy.family.model_type == "gpt_oss":
        return _mxfp4(anatomy, prefix, generator)
    if anatomy.family.model_type == "granitemoe":
        return _stacks(anatomy, prefix, generator)
    return {
        f"{prefix}.{expert}.{name}.weight": _random(anatomy.shape(role), name, generator)
        for expert in range(anatomy.experts)
        for role, name in anatomy.family.projections.items()
    }


def _stacks(anatomy: Anatomy, prefix: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Granite's two tensors a layer: gate and up of all experts, and down."""
    block, (width, hidden) = prefix.removesuffix(".experts"), anatomy.shape("gate")
    shapes = {"input_linear": (2 * width, hidden), "output_linear": (hidden, width)}
    return {
        f"{block}.{name}.weight": _random((anatomy.experts, *shape), name, generator) for name, shape in shapes.items()
    }


def _mxfp4(anatomy: Anatomy, prefix: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """gpt-oss's blocks of 32 codes, two a byte, with a power of two a block (exponent + 127), and biases."""
    tensors = {}
    for name, rows, columns in (
        ("gate_up_proj", 2 * anatomy.width, anatomy.hidden),
        ("down_proj", anatomy.hidden, anatomy.width),
    ):
        shape = (anatomy.experts, rows, columns // 32)
        codes: Any = {"generator": generator, "dtype": torch.uint8}
        tensors[f"{prefix}.{name}_blocks"] = torch.randint(0, 256, (*shape, 16), **codes)
        tensors[f"{prefix}.{name}_scales"] = torch.randint(119, 122, shape, **codes)
        tensors[f"{prefix}.{name}_bias"] = _random((anatomy.experts, rows), name, generator)
    return tensors


def _list_files(root: Path, folder: Path) -> None:
    """The hub's list of the commit's files, as huggingface_hub keeps it: sizes, hashes, what git calls them."""
    entries = {}
    for path in sorted(folder.iterdir()):
        size, digest = path.stat().st_size, sha256_file(path)
        large = path.suffix == ".safetensors"
        content = LFS_POINTER % (digest.encode(), size) if large else path.read_bytes()
        blob = hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()
        lfs = {"lfs_sha256": digest, "lfs_size": size} if large else {}
        entries[path.name] = {"size": size, "blob_id": blob} | lfs
    (root / "trees").mkdir(exist_ok=True)
    (root / "trees" / f"{REVISION}.json").write_text(json.dumps({"format_version": 1, "files": entries}))
