"""Attention of a decoding step that reads keys and values as they are cached.

transformers repeats them for every query head of a group where there is a mask: eight times Qwen3's and gpt-oss's
cache, in every layer, at every step. Here the query heads of a group are queries of one head instead.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "emoe_grouped"


def use_grouped_attention(model: Any) -> None:
    """Have a model attend by this file from now on."""
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config._attn_implementation = NAME


def grouped_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    s_aux: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers' attention functions: query (batch, heads, queries, size) -> (batch, queries, heads, size).

    s_aux: gpt-oss's sinks, a score a head that takes probability and gives no value.
    """
    batch, heads, queries, size = query.shape
    if s_aux is None and queries > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    groups = heads // key.shape[1]
    grouped = query.reshape(batch, key.shape[1], groups * queries, size)
    if s_aux is None:
        out = functional.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    else:
        scores = (grouped @ key.transpose(2, 3)).view(batch, heads, queries, -1) * scaling
        scores = _masked(scores, attention_mask)
        sinks = s_aux.to(scores.dtype).view(1, -1, 1, 1).expand(batch, -1, queries, -1)
        chances = torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1, dtype=torch.float32)[..., :-1]
        out = chances.to(value.dtype).view(batch, key.shape[1], groups * queries, -1) @ value
    return out.view(batch, heads, queries, value.shape[-1]).transpose(1, 2).contiguous(), None


def _masked(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Scores with those that no query may see at their least; without a mask, those that come after it."""
    if mask is None:
        queries, keys = scores.shape[-2:]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril(keys - queries)
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
