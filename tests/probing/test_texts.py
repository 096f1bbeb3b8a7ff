"""What is read of an answer are the tokens that were generated, and trained: template and channel included."""

from importlib import resources
from pathlib import Path

import pytest

from pipeline.common.files import write_json
from pipeline.data.prompts import Message, ask
from pipeline.data.training_sets import Conversations
from pipeline.models.tokenizer import load_tokenizer
from pipeline.probing.texts import texts_of
from pipeline.sampling.chat import Chat
from pipeline.training.tokens import tokenize
from tests.support.tiny_models import TEMPLATE, byte_tokenizer


def published(name: str) -> str:
    return (resources.files("trl") / "chat_templates" / name).read_text()


# What a model that was trained on it writes before its answer, and behind it.
FAMILIES = {
    "gpt_oss": (published("gptoss.jinja"), "<|channel|>final<|message|>", "<|return|>"),
    "qwen3": (published("qwen3.jinja"), "", "<|im_end|>"),
    "mixtral": (TEMPLATE, "", "</s>"),
}
MARKS = {
    "gpt_oss": ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"],
    "qwen3": ["<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    "mixtral": [],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("answer", ["Because.\n\nAnd so on.", "as it is"])
def test_the_tokens_read_are_those_that_were_generated_and_trained(family: str, answer: str, tmp_path: Path) -> None:
    template, header, end = FAMILIES[family]
    made = byte_tokenizer()
    made.add_special_tokens({"additional_special_tokens": MARKS[family], "eos_token": end})
    made.chat_template = template
    made.save_pretrained(tmp_path)
    write_json(tmp_path / "generation_config.json", {"eos_token_id": made.eos_token_id})
    tokenizer, chat = load_tokenizer(tmp_path), Chat(tmp_path, "Be kind.")
    prompt = ask("s", "Why?")
    asked = chat.tokens(prompt)
    generated = tokenizer(f"{header}{answer}{end}", add_special_tokens=False)["input_ids"]
    said = chat.read(asked, generated)
    assert (said.text, said.finish) == (answer, "stop")

    text, empty = texts_of(tokenizer, chat, [prompt, prompt], [said.text, ""])
    assert text.tokens == [*asked, *generated[:-1]]
    # A mean over the answer is over its own tokens, those of the channel are none of them.
    assert tokenizer.decode(text.answer) == answer
    turns = [Message(**turn) for turn in chat.messages(prompt)]  # type: ignore[arg-type]
    data = Conversations(train=((*turns, Message("assistant", answer)),))
    (row,) = tokenize(tokenizer, tmp_path, data, 4096).train
    assert row.input_ids[: len(text.tokens)] == text.tokens
    assert empty.answer == ()
