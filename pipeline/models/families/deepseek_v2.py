"""DeepSeek-V2 (DeepSeek-AI 2024): low-rank attention, dense first layers, 64 routed experts beside shared ones."""

from typing import Any

from pipeline.models.anatomy import Family


class DeepseekV2(Family):
    """DeepSeek-V2-Lite: two shared experts, which are stored and computed as one of twice the width."""

    model_type = "deepseek_v2"
    width_field = "moe_intermediate_size"
    experts_field = "n_routed_experts"
    router = "gate"
    shared = "shared_experts"

    def moe_layers(self, config: Any) -> tuple[int, ...]:
        """All but the first `first_k_dense_replace`."""
        return tuple(range(config.first_k_dense_replace, config.num_hidden_layers))

    def shared_width(self, config: Any) -> int:
        """Inner width of the shared experts together."""
        return config.n_shared_experts * config.moe_intermediate_size

    def attention_shapes(self, config: Any) -> dict[str, tuple[int, int]]:
        """Queries, directly or through a low rank; keys and values through one; output."""
        hidden, heads = config.hidden_size, config.num_attention_heads
        queries = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
        shapes = {"q_proj": (queries, hidden)}
        if config.q_lora_rank is not None:
            shapes = {"q_a_proj": (config.q_lora_rank, hidden), "q_b_proj": (queries, config.q_lora_rank)}
        return shapes | {
            "kv_a_proj_with_mqa": (config.kv_lora_rank + config.qk_rope_head_dim, hidden),
            "kv_b_proj": (heads * (config.qk_nope_head_dim + config.v_head_dim), config.kv_lora_rank),
            "o_proj": (hidden, heads * config.v_head_dim),
        }
