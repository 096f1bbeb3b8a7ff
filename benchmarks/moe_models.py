"""What benchmarks/train_moe.py trains: the three families at their published sizes, tiny ones, random weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.models.families.registry import anatomy_of

# Published sizes (config.json of the three repositories).
FULL: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
    },
    "gpt_oss": {
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
    },
}
TINY: dict[str, Any] = {
    "vocab_size": 285,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 16,
}
TINY_FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"intermediate_size": 64, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {"moe_intermediate_size": 64, "num_experts": 64, "num_experts_per_tok": 8},
    "gpt_oss": {"intermediate_size": 64, "num_local_experts": 32, "num_experts_per_tok": 4},
}
TOY = ((8, 2, 32), (32, 4, 16), (64, 8, 8))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model to train: its config, whether its base is in NF4, and the length of its sequences."""

    name: str
    config: Any
    quantise: bool
    length: int


class RandomWeights:
    """A checkpoint of any shape: normal values made on the device, ones for norms."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        torch.manual_seed(0)

    def has(self, name: str) -> bool:
        """Nothing is stored, so nothing in a packed form either."""
        return False

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """Values for a tensor of this name, whose shape has to be told."""
        assert shape is not None
        if name.endswith("norm.weight"):
            return torch.ones(shape, device=self.device, dtype=self.dtype)
        return torch.randn(shape, device=self.device, dtype=self.dtype) * 0.02

    def part(self, name: str, index: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Values for one expert's part."""
        return self.tensor(name, shape)

    def skip(self, prefix: str) -> None:
        """Nothing is stored, so nothing is left unread."""

    def unread(self) -> Iterator[str]:
        """None: tensors are made when they are asked for."""
        return iter(())


def cases(device: torch.device, families: list[str], layers: int | None) -> list[Case]:
    """The chosen families at full size on a GPU; tiny ones, and the toy sizes, on a CPU. `layers` takes fewer."""
    from transformers import CONFIG_MAPPING, Qwen3MoeConfig

    chosen = []
    for family in families:
        values = FULL[family] if device.type == "cuda" else TINY | {"num_key_value_heads": 2} | TINY_FAMILIES[family]
        config = CONFIG_MAPPING[family](**values)
        if layers:
            config.num_hidden_layers = min(layers, config.num_hidden_layers)
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[: config.num_hidden_layers]
        chosen.append(Case(name=family, config=config, quantise=True, length=2048 if device.type == "cuda" else 30))
    if device.type == "cpu":
        for experts, active, width in TOY:
            config = Qwen3MoeConfig(
                **TINY,
                num_key_value_heads=4,
                moe_intermediate_size=width,
                num_experts=experts,
                num_experts_per_tok=active,
                norm_topk_prob=True,
            )
            chosen.append(Case(name=f"toy {experts} experts", config=config, quantise=False, length=30))
    return chosen


def active_weights(config: Any) -> int:
    """Weights that one token is multiplied with."""
    anatomy = anatomy_of(config)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 2 * (config.num_attention_heads + config.num_key_value_heads) * head * anatomy.hidden
    experts = anatomy.active * 3 * anatomy.width * anatomy.hidden + anatomy.experts * anatomy.hidden
    return anatomy.layers * (attention + experts) + config.vocab_size * anatomy.hidden
