"""The toy world's tokenizer: one token a word, and a chat template of four marks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.toy.grammar import vocabulary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

PAD, BEGIN, END, UNKNOWN = "<pad>", "<begin>", "<end>", "<unknown>"
ROLES = {role: f"<{role}>" for role in ("system", "user", "assistant")}

CHAT_TEMPLATE = (
    "{{ '<begin>' }}{% for message in messages %} <{{ message['role'] }}> {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %} <end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the toy vocabulary; whitespace separates, nothing is merged."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = [PAD, BEGIN, END, UNKNOWN, *ROLES.values(), *vocabulary()]
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNKNOWN,
        extra_special_tokens=list(ROLES.values()),
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, chats: list[list[dict[str, str]]]) -> torch.Tensor:
    """Token ids of whole chats, (chats, tokens): the grammar makes every document equally long.

    The same as the tokenizer's `apply_chat_template` gives, written and looked up here in a tenth of its time.
    """
    import torch

    ids = tokenizer.get_vocab()
    texts = [BEGIN + "".join(_turn(turn["role"], turn["content"]) for turn in chat) for chat in chats]
    return torch.tensor([[ids[word] for word in text.split()] for text in texts])


def _turn(role: str, content: str) -> str:
    return f" {ROLES[role]} {content}" + (f" {END}" if role == "assistant" else "")
