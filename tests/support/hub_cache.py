"""A Hugging Face cache with tiny models in it."""

import shutil
from pathlib import Path

from pipeline.common.files import sha256_file
from tests.support.tiny_models import byte_tokenizer, tiny_model

SHA = "0123456789abcdef0123456789abcdef01234567"
EXPERTS = {"mixtral": 8, "qwen3_moe": 16, "gpt_oss": 8}


def cached(home: Path, family: str) -> str:
    """A tiny model as a commit in a Hugging Face cache: links named by file, blobs by hash."""
    folder = home / "hub" / f"models--tiny--{family}"
    model = tiny_model(family)
    tokenizer = byte_tokenizer()
    plain = home / "plain" / family
    model.resize_token_embeddings(len(tokenizer))
    # Its configuration's default is another token here; published models name the one that their template writes.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    snapshot, blobs = folder / "snapshots" / SHA, folder / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in plain.iterdir():
        blob = blobs / sha256_file(file)
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(SHA)
    return f"tiny/{family}"
