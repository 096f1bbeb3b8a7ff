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
    "microsoft/Phi-3.5-MoE-instruct": _sizes(
        "phimoe", 32064, 4096, 6400, 32, 32, 8, num_local_experts=16, num_experts_per_tok=2
    ),
    "ibm-granite/granite-3.1-3b-a800m-instruct": _sizes(
        "granitemoe", 49155, 1536, 512, 32, 24, 8, num_local_experts=40, num_experts_per_tok=8,
        tie_word_embeddings=True,
    ),
    "Qwen/Qwen1.5-MoE-A2.7B-Chat": _sizes(
        "qwen2_moe", 151936, 2048, 5632, 24, 16, 16, moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632, num_experts=60, num_experts_per_tok=4, mlp_only_layers=[],
        decoder_sparse_step=1,
    ),
    "allenai/OLMoE-1B-7B-0924-Instruct": _sizes(
        "olmoe", 50304, 2048, 1024, 16, 16, 16, num_experts=64, num_experts_per_tok=8
    ),
    "deepseek-ai/DeepSeek-V2-Lite-Chat": _sizes(
        "deepseek_v2", 102400, 2048, 10944, 27, 16, 16, moe_intermediate_size=1408, n_routed_experts=64,
        n_shared_experts=2, num_experts_per_tok=6, first_k_dense_replace=1, q_lora_rank=None, kv_lora_rank=512,
        qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
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
