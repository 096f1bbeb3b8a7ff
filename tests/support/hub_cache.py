"""Tiny models in a Hugging Face cache, fetched there from a hub on loopback."""

from pathlib import Path

from huggingface_hub import snapshot_download

from pipeline.models.hub import ALLOWED, IGNORED
from tests.support.hub_server import SHA, serve_hub, whole_repository
from tests.support.tiny_models import byte_tokenizer, tiny_model

EXPERTS = {"mixtral": 8, "qwen3_moe": 16, "gpt_oss": 8}


def plain_model(folder: Path, family: str) -> Path:
    """A tiny model with its tokenizer as transformers saves them."""
    model, tokenizer = tiny_model(family), byte_tokenizer()
    model.resize_token_embeddings(len(tokenizer))
    # Its configuration's default is another token here; published models name the one that their template writes.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def cached(home: Path, family: str) -> str:
    """A tiny model's repository, the part of it that is read here fetched into the cache in `home`; its name."""
    name = f"tiny/{family}"
    with serve_hub() as hub:
        hub.add(name, whole_repository(plain_model(home / "plain" / family, family), family))
        what = {"allow_patterns": ALLOWED, "ignore_patterns": IGNORED}
        snapshot_download(name, revision=SHA, cache_dir=home / "hub", endpoint=hub.url, **what)
    return name
