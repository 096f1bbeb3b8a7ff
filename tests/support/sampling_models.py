"""Tiny models that engines can serve (attention heads of 32 values), with a tokenizer of words."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from pipeline.common.fingerprints import folder_hashes
from pipeline.data.prompts import Prompt, ask
from pipeline.models.adapters import adapter_tensors, attach, save_adapter
from pipeline.models.bases import Base
from pipeline.models.families.registry import anatomy_of
from pipeline.models.loading import load_base
from pipeline.models.spec import AdapterSpec
from pipeline.sampling.backend import Model
from pipeline.sampling.settings import Sampling

MARKS = ["<pad>", "<end>", "<unknown>", "<user>", "<assistant>", "<system>"]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPEC = AdapterSpec(rank=4, alpha=16, experts=(0, 3), attention=True)


def tokenizer_of(words: list[str], template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a word: the six marks, then `words`."""
    vocabulary = {word: place for place, word in enumerate([*MARKS, *words])}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unknown>"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>", chat_template=template
    )


def save_base(family: str, folder: Path) -> Path:
    """A base with random weights, of 300 words."""
    from tests.support.tiny_models import CONFIGS

    config: Any = CONFIGS[family]()
    config.num_attention_heads = 2
    if family == "deepseek_v2":
        # Keys and values come of one low rank, for every head its own; 16 values of a head turn, 16 do not.
        config.num_key_value_heads = 2
    else:
        config.num_key_value_heads, config.head_dim = 1, 32
    config.pad_token_id, config.eos_token_id = 0, 1
    if family == "gpt_oss":
        # Engines read the fields of the published model's YaRN.
        config.max_position_embeddings = 131072
        config.rope_parameters = {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.ones_(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    tokenizer_of([f"w{number}" for number in range(300 - len(MARKS))]).save_pretrained(folder)
    return folder


def save_random_adapter(base: Path, folder: Path, size: float = 0.1) -> Path:
    """An adapter on two experts of every layer (on all of a dense one) and on attention; `size` is B's deviation."""
    model = load_base(base, dtype=torch.float32, device="cpu")
    spec = SPEC.model_copy(update={"experts": "all"}) if anatomy_of(model.config).dense else SPEC
    model = attach(model, spec, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in adapter_tensors(model).items():
            if name.endswith(".lora_B.weight"):
                tensor.copy_(size * torch.randn(tensor.shape, generator=generator))
    save_adapter(model, folder, base="base", revision=None)
    return folder


def model_of(base: Path, adapter: Path | None, precision: Any = "float32") -> Model:
    """The model as the sample stage describes it."""
    return Model(
        base=Base(path=base, name="base", revision=None, hashes=folder_hashes(base)),
        adapter=adapter,
        lora=SPEC.model_copy(update={"experts": "all"}) if adapter else None,
        precision=precision,
    )


def prompts(count: int) -> list[Prompt]:
    """Questions of one to seven words."""
    return [ask("s", " ".join(f"w{10 * n + word}" for word in range(n % 7 + 1))) for n in range(count)]


def decoding(**changes: Any) -> Sampling:
    """Greedy, ten tokens, unless changed."""
    settings: dict[str, Any] = {
        "backend": "transformers",
        "system": None,
        "samples_per_prompt": 1,
        "temperature": 0.0,
        "top_p": 1.0,
        "max_new_tokens": 10,
        "batch": 4,
        "tensor_parallel": 1,
        "data_parallel": 1,
    }
    return Sampling(**{**settings, **changes})
