"""Tiny models of the real architectures, built from their configurations."""

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    Gemma3TextConfig,
    GptOssConfig,
    GraniteMoeConfig,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from pipeline.models.adapters import adapter_tensors, attach
from pipeline.models.experts.fused import fuse
from pipeline.models.experts.unfused import unfuse
from pipeline.models.spec import AdapterSpec
from pipeline.training.settings import Training

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


COMMON = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}

TRAINING = Training(
    examples=None,
    max_characters=None,
    validation=0.0,
    precision="float32",
    devices=1,
    max_steps=6,
    batch=4,
    learning_rate=1e-3,
    schedule="constant",
    warmup_steps=0,
    adam_beta1=0.9,
    adam_beta2=0.95,
    weight_decay=0.0,
    max_grad_norm=1.0,
    optimizer="adamw_torch",
    max_tokens=4096,
    router_aux_loss=0.0,
    checkpoint_every=2,
)


CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "mixtral": lambda: MixtralConfig(**COMMON, intermediate_size=64, num_local_experts=8, num_experts_per_tok=2),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **COMMON,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_experts=16,
        num_experts_per_tok=4,
        head_dim=16,
        norm_topk_prob=True,
    ),
    "gpt_oss": lambda: GptOssConfig(
        **COMMON,
        intermediate_size=64,
        num_local_experts=8,
        num_experts_per_tok=2,
        head_dim=16,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=16,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "qwen2_moe": lambda: Qwen2MoeConfig(
        **COMMON,
        intermediate_size=128,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=128,
        num_experts=8,
        num_experts_per_tok=2,
    ),
    "olmoe": lambda: OlmoeConfig(**COMMON, intermediate_size=64, num_experts=16, num_experts_per_tok=4),
    "deepseek_v2": lambda: DeepseekV2Config(
        **COMMON | {"num_key_value_heads": 4, "num_hidden_layers": 3},
        intermediate_size=128,
        moe_intermediate_size=64,
        n_routed_experts=8,
        n_shared_experts=2,
        num_experts_per_tok=3,
        first_k_dense_replace=1,
        q_lora_rank=None,
        kv_lora_rank=64,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=16,
        head_dim=16,
    ),
    "phimoe": lambda: PhimoeConfig(
        **COMMON,
        intermediate_size=64,
        num_local_experts=8,
        num_experts_per_tok=2,
        attention_bias=True,
        lm_head_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "granitemoe": lambda: GraniteMoeConfig(
        **COMMON,
        intermediate_size=64,
        num_local_experts=16,
        num_experts_per_tok=4,
        attention_multiplier=0.25,
        embedding_multiplier=2.0,
        residual_multiplier=0.5,
        logits_scaling=2.0,
    ),
    "llama": lambda: LlamaConfig(**COMMON, intermediate_size=64),
    "qwen2": lambda: Qwen2Config(**COMMON, intermediate_size=64),
    "gemma3_text": lambda: Gemma3TextConfig(
        **COMMON,
        intermediate_size=64,
        head_dim=16,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=16,
        query_pre_attn_scalar=16,
    ),
}
DENSE = ("llama", "qwen2", "gemma3_text")
MOE = ("mixtral", "qwen3_moe", "gpt_oss", "qwen2_moe", "olmoe", "deepseek_v2", "phimoe", "granitemoe")
PATHS = {"unfused": unfuse, "fused": fuse}


def tiny_model(family: str, path: str | None = None, seed: int = 0) -> Any:
    """A frozen fp32 model with random weights (biases too), its experts rebuilt by `path`."""
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    if path:
        PATHS[path](model)
    return model.requires_grad_(False).eval()


def tokens(batch: int = 4, length: int = 24, seed: int = 1) -> torch.Tensor:
    """Random token ids, (batch, length)."""
    return torch.randint(0, 300, (batch, length), generator=torch.Generator().manual_seed(seed))


def adapted(family: str, path: str, spec: AdapterSpec, noise: bool = True) -> Any:
    """A tiny model with an adapter whose B is not zero, so that it changes the output."""
    model = attach(tiny_model(family, path), spec, seed=5)
    if noise:
        generator = torch.Generator().manual_seed(7)
        for name, tensor in adapter_tensors(model).items():
            if "lora_B" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model


def train(model: Any, steps: int = 3) -> Any:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for step in range(steps):
        ids = tokens(seed=step)
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def byte_tokenizer():
    """Every byte a token: whatever text comes, it goes in and comes out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "</s>", "<pad>", *alphabet]
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
