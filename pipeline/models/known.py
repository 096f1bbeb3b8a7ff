"""The sizes of the hub bases, as their config.json have them: what is planned before anything is fetched.

Once a base's own config.json is in the Hugging Face cache, that one is read instead.
"""

from types import SimpleNamespace
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import read_json
from pipeline.models.hub import snapshot

_NAMES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def _sizes(model_type: str, *values: int, **more: Any) -> dict[str, Any]:
    sizes = dict(zip(_NAMES, values, strict=True))
    return {"model_type": model_type, "tie_word_embeddings": False} | sizes | more


# vocabulary, hidden, width, layers, query heads, key-value heads
KNOWN: dict[str, dict[str, Any]] = {
    "mistralai/Mixtral-8x7B-Instruct-v0.1": _sizes(
        "mixtral", 32000, 4096, 14336, 32, 32, 8, num_local_experts=8, num_experts_per_tok=2
    ),
    "Qwen/Qwen3-30B-A3B": _sizes(
        "qwen3_moe", 151936, 2048, 6144, 48, 32, 4, moe_intermediate_size=768, head_dim=128, num_experts=128,
        num_experts_per_tok=8, norm_topk_prob=True, mlp_only_layers=[], decoder_sparse_step=1,
    ),
    "openai/gpt-oss-20b": _sizes(
        "gpt_oss", 201088, 2880, 2880, 24, 64, 8, head_dim=64, num_local_experts=32, num_experts_per_tok=4,
        quantization_config={"quant_method": "mxfp4"},
    ),
    "meta-llama/Llama-3.1-8B-Instruct": _sizes("llama", 128256, 4096, 14336, 32, 32, 8),
    "meta-llama/Llama-3.2-1B-Instruct": _sizes(
        "llama", 128256, 2048, 8192, 16, 32, 8, head_dim=64, tie_word_embeddings=True
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": _sizes("qwen2", 151936, 896, 4864, 24, 14, 2, tie_word_embeddings=True),
    "Qwen/Qwen2.5-7B-Instruct": _sizes("qwen2", 152064, 3584, 18944, 28, 28, 4),
    "Qwen/Qwen2.5-14B-Instruct": _sizes("qwen2", 152064, 5120, 13824, 48, 40, 8),
    "Qwen/Qwen2.5-32B-Instruct": _sizes("qwen2", 152064, 5120, 27648, 64, 40, 8),
    "google/gemma-3-4b-it": _sizes(
        "gemma3_text", 262208, 2560, 10240, 34, 8, 4, head_dim=256, tie_word_embeddings=True
    ),
    "google/gemma-3-12b-it": _sizes(
        "gemma3_text", 262208, 3840, 15360, 48, 16, 8, head_dim=256, tie_word_embeddings=True
    ),
    "google/gemma-3-27b-it": _sizes(
        "gemma3_text", 262208, 5376, 21504, 62, 32, 16, head_dim=128, tie_word_embeddings=True
    ),
}  # fmt: skip


def config_of(repository: str, revision: str) -> SimpleNamespace | None:
    """The fields of a hub base's configuration (of the language model, where it also sees); None where none are known.

    Raises UserError for a config.json in the cache that is damaged.
    """
    path = snapshot(repository, revision) / "config.json"
    fields = read_json(path) if path.exists() else KNOWN.get(repository)
    if fields is None:
        return None
    if not isinstance(fields, dict):
        raise UserError(f"{path} holds no object: it is damaged; delete it and pin the base again.")
    return SimpleNamespace(**{"tie_word_embeddings": False} | fields.get("text_config", fields))


def checkpoint_bytes(config: Any) -> float:
    """Bytes of the checkpoint that a hub serves: 16 bits a value, of gpt-oss's experts 4 and a scale for 32 of them."""
    from pipeline.models.sizes import HALF, base_values

    values = base_values(config)
    packed = 4.25 / 8 if config.model_type == "gpt_oss" else HALF
    return values.pop("experts") * packed + HALF * sum(values.values())
