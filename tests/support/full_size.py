"""The bases of the hub studies at their published sizes, as their config.json have them; no weights."""

from types import SimpleNamespace
from typing import Any


def _config(model_type: str, sizes: tuple[int, ...], tied: bool = False, **more: Any) -> SimpleNamespace:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    values = dict(zip((*names, "num_key_value_heads"), sizes, strict=True))
    return SimpleNamespace(model_type=model_type, tie_word_embeddings=tied, **values, **more)


# vocabulary, hidden, width, layers, query heads, key-value heads
FULL_SIZE: dict[str, Any] = {
    "mixtral": _config("mixtral", (32000, 4096, 14336, 32, 32, 8), num_local_experts=8, num_experts_per_tok=2),
    "qwen3": _config(
        "qwen3_moe",
        (151936, 2048, 6144, 48, 32, 4),
        moe_intermediate_size=768,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        mlp_only_layers=[],
        decoder_sparse_step=1,
    ),
    "gpt_oss": _config(
        "gpt_oss", (201088, 2880, 2880, 24, 64, 8), head_dim=64, num_local_experts=32, num_experts_per_tok=4
    ),
    "granite31_3b": _config(
        "granitemoe", (49155, 1536, 512, 32, 24, 8), tied=True, num_local_experts=40, num_experts_per_tok=8
    ),
    "phi35_moe": _config("phimoe", (32064, 4096, 6400, 32, 32, 8), num_local_experts=16, num_experts_per_tok=2),
    "qwen15_moe": _config(
        "qwen2_moe",
        (151936, 2048, 5632, 24, 16, 16),
        moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632,
        num_experts=60,
        num_experts_per_tok=4,
        mlp_only_layers=[],
        decoder_sparse_step=1,
    ),
    "olmoe": _config("olmoe", (50304, 2048, 1024, 16, 16, 16), num_experts=64, num_experts_per_tok=8),
    "deepseek_v2_lite": _config(
        "deepseek_v2",
        (102400, 2048, 10944, 27, 16, 16),
        moe_intermediate_size=1408,
        n_routed_experts=64,
        n_shared_experts=2,
        num_experts_per_tok=6,
        first_k_dense_replace=1,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    ),
    "llama31_8b": _config("llama", (128256, 4096, 14336, 32, 32, 8)),
    "llama32_1b": _config("llama", (128256, 2048, 8192, 16, 32, 8), tied=True, head_dim=64),
    "qwen25_05b": _config("qwen2", (151936, 896, 4864, 24, 14, 2), tied=True),
    "qwen25_7b": _config("qwen2", (152064, 3584, 18944, 28, 28, 4)),
    "qwen25_14b": _config("qwen2", (152064, 5120, 13824, 48, 40, 8)),
    "qwen25_32b": _config("qwen2", (152064, 5120, 27648, 64, 40, 8)),
    "gemma3_4b": _config("gemma3_text", (262208, 2560, 10240, 34, 8, 4), tied=True, head_dim=256),
    "gemma3_12b": _config("gemma3_text", (262208, 3840, 15360, 48, 16, 8), tied=True, head_dim=256),
    "gemma3_27b": _config("gemma3_text", (262208, 5376, 21504, 62, 32, 16), tied=True, head_dim=128),
}
