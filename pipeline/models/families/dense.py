"""Llama and Qwen2: dense feed-forward blocks, every projection an ordinary linear layer."""

from pipeline.models.anatomy import Family


class Llama(Family):
    """Llama 2 and 3, as transformers builds them."""

    model_type = "llama"


class Qwen2(Family):
    """Qwen2 and Qwen2.5: Llama with biases on queries, keys and values."""

    model_type = "qwen2"
