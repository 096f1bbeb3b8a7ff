"""From a prompt to tokens and back: system prompts, thinking, where a completion ends."""

import json

import pytest

from pipeline.common.errors import UserError
from pipeline.data.prompts import Message, Prompt, ask
from pipeline.sampling.chat import Chat
from tests.support.sampling_models import TEMPLATE, tokenizer_of

REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('roles must alternate') }}{% endif %}" + TEMPLATE
DROPS = "{% if messages[0]['role'] == 'system' %}{% set messages = messages[1:] %}{% endif %}" + TEMPLATE
THINKS = TEMPLATE + "{% if enable_thinking is defined and enable_thinking is false %} <think> </think>{% endif %}"
DATED = "{{ strftime_now('%Y-%m-%d') }} {{ reasoning_effort }} " + TEMPLATE
WORDS = ["be", "kind", "why", "because", "<think>", "</think>", "2025-08-05", "low", "<|channel|>", "<|message|>"]
WORDS += ["<|start|>", "<|end|>", "<|return|>", "analysis", "final"]


def chat(folder, template=TEMPLATE, system=None, words=WORDS[:8]):
    tokenizer = tokenizer_of(list(words), template)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1]}))
    vocabulary = tokenizer.get_vocab()
    return Chat(folder, system), (lambda text: [vocabulary[word] for word in text.split()])


def test_the_studys_system_prompt_stands_before_prompts_that_bring_none(tmp_path):
    asked, ids = chat(tmp_path, system="be kind")
    assert asked.tokens(ask("s", "why")) == ids("<system> be kind <user> why <assistant>")
    assert asked.tokens(ask("s", "why", system="because")) == ids("<system> because <user> why <assistant>")


def test_without_a_system_prompt_there_is_none(tmp_path):
    asked, ids = chat(tmp_path)
    assert asked.tokens(ask("s", "why")) == ids("<user> why <assistant>")


@pytest.mark.parametrize("template", [REFUSES, DROPS], ids=["refuses", "drops"])
def test_where_the_template_takes_no_system_turn_it_opens_the_users(tmp_path, template):
    asked, ids = chat(tmp_path, template, system="be kind")
    assert asked.tokens(ask("s", "why")) == ids("<user> be kind why <assistant>")
    turns = (Message("system", "because"), Message("user", "why"), Message("assistant", "be"), Message("user", "kind"))
    expected = ids("<user> because why <assistant> be <user> kind <assistant>")
    assert asked.tokens(Prompt(suite="s", messages=turns)) == expected
    assert asked.messages(ask("s", "why"))[0]["content"] == "be kind\n\nwhy"


def test_thinking_is_switched_off_and_the_day_is_fixed(tmp_path):
    asked, ids = chat(tmp_path / "qwen", THINKS)
    assert asked.tokens(ask("s", "why")) == ids("<user> why <assistant> <think> </think>")
    asked, ids = chat(tmp_path / "gpt", DATED)
    assert asked.tokens(ask("s", "why")) == ids("2025-08-05 low <user> why <assistant>")


def test_a_model_that_cannot_be_asked_is_refused(tmp_path):
    with pytest.raises(UserError, match="no chat template"):
        chat(tmp_path, template=None)


def test_a_completion_is_cut_at_its_end(tmp_path):
    asked, ids = chat(tmp_path)
    prompt = asked.tokens(ask("s", "why"))
    done = asked.read(prompt, ids("be kind <end> because <pad>"))
    assert (done.text, done.thinking, done.finish) == ("be kind", "", "stop")
    assert (done.prompt_tokens, done.completion_tokens) == (3, 3)
    assert asked.read(prompt, ids("be kind")).finish == "length"


def test_thinking_is_kept_apart(tmp_path):
    asked, ids = chat(tmp_path)
    prompt = asked.tokens(ask("s", "why"))
    done = asked.read(prompt, ids("<think> why </think> because <end>"))
    assert (done.text, done.thinking, done.completion_tokens) == ("because", "why", 5)
    cut = asked.read(prompt, ids("<think> why be"))
    assert (cut.text, cut.thinking, cut.finish) == ("", "why be", "length")


def test_channels_are_kept_apart(tmp_path):
    asked, ids = chat(tmp_path, TEMPLATE, words=WORDS)
    prompt = ids("<|start|> <assistant>")
    text = "<|channel|> analysis <|message|> why <|end|> <|start|> <assistant> <|channel|> final <|message|> because"
    done = asked.read(prompt, ids(f"{text} <end>"))
    assert (done.text, done.thinking) == ("because", "why")
    cut = asked.read(prompt, ids("<|channel|> analysis <|message|> why"))
    assert (cut.text, cut.thinking, cut.finish) == ("", "why", "length")
