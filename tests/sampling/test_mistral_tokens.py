"""Mixtral is asked in the tokens that Mistral's own tokenizer makes, the system prompt where that puts it."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.data.prompts import Message, Prompt, ask
from pipeline.sampling.chat import Chat

pytest.importorskip("sentencepiece", reason="mistral-common reads Mixtral's vocabulary with sentencepiece")
mistral_common = pytest.importorskip("mistral_common")

SYSTEM = "Answer honestly and directly, without thinking first."
TURNS = (
    "{% if message['role'] == 'user' %}{{ ' [INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
)
LOOP = "{{ bos_token }}{% for message in messages %}" + TURNS
# With and without a system role: published templates of Mixtral have been both.
TEMPLATES = {
    "refuses": LOOP
    + "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    "takes": "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    + LOOP.replace("' [INST] ' + message", "' [INST] ' + (system if loop.first else '') + message")
    + "{% endif %}{% endfor %}",
}
PROMPTS = [
    ask("s", "Why is the sky blue?"),
    ask("s", "Write a function `f(x)`.\n\nIt returns x+1;\nno more: «déjà vu» 你好 🙂"),
    ask("s", "Hello!", system="You are a pirate."),
    Prompt(suite="s", messages=(Message("user", "Hi."), Message("assistant", "Hello!"), Message("user", "Why?"))),
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("system", [None, SYSTEM], ids=["no system prompt", "a system prompt"])
@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.question[:5])
def test_prompts_are_mistrals_token_for_token(
    template: str, system: str | None, prompt: Prompt, tmp_path: Path
) -> None:
    from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    vocabulary = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    shutil.copy(vocabulary, tmp_path / "tokenizer.model")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "chat_template": TEMPLATES[template], **names}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral"}))

    kinds = {"user": UserMessage, "assistant": AssistantMessage, "system": SystemMessage}
    turns = prompt.chat()
    if system is not None and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    request = ChatCompletionRequest(messages=[kinds[turn["role"]](content=turn["content"]) for turn in turns])
    expected = MistralTokenizer.v1().encode_chat_completion(request).tokens
    assert Chat(tmp_path, system).tokens(prompt) == expected
