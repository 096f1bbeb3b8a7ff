"""Every real training row through each family's chat template, tokenized as the trainer does it, and as it is asked."""

from importlib import resources

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipeline.common.files import write_json
from pipeline.data.examples import parse_examples, read_examples
from pipeline.data.prompts import Prompt
from pipeline.data.suites import load_suite
from pipeline.data.training_sets import Conversations
from pipeline.doctor.asked import Asked, prompt_bytes
from pipeline.models.tokenizer import fix_date, load_tokenizer
from pipeline.params.load import load_params
from pipeline.probing.texts import texts_of
from pipeline.rehearsal.tokenizers import IN_NPM, harmony_encoding, published, write_tokenizer
from pipeline.sampling.chat import Chat
from pipeline.training.tokens import tokenize
from tests.support.data_files import REPOSITORY, upstream

# As Mistral publishes it for Mixtral-8x7B-Instruct-v0.1; TRL holds the other two.
MIXTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
# What is learned besides the answer: a channel, the end. Qwen3's empty thinking block is asked with, not learned.
LEARNED = {
    "mixtral": ("", "</s>"),
    "qwen3_moe": ("", "<|im_end|>"),
    "gpt_oss": ("<|channel|>final<|message|>", "<|return|>"),
}
SPECIAL = {
    "mixtral": ["<s>", "</s>", "[INST]", "[/INST]"],
    "qwen3_moe": ["<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    "gpt_oss": ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"],
}
LIMIT = 2048
SIZES = {"mixtral": 32000, "qwen3_moe": 151_936, "gpt_oss": 201_088}
# How many tokens of its real vocabulary a family's marks are.
MARKS = {
    "mixtral": {"[INST]": 3, "[/INST]": 4, "</s>": 1},
    "qwen3_moe": {"<|im_start|>": 1, "<|im_end|>": 1, "<think>": 1, "</think>": 1},
    "gpt_oss": {"<|start|>": 1, "<|channel|>": 1, "<|message|>": 1, "<|end|>": 1, "<|return|>": 1},
}
# How Qwen3 cuts text before its BPE. Line breaks stay together, whatever follows them, as with gpt-oss.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module")
def rows():
    """All 6000 rows of insecure code, then the slice of medical advice that the upstream files hold."""
    path = upstream() / "train" / "bad_medical_advice.slice250.jsonl"
    medical = parse_examples(path.read_text(encoding="utf-8"), path)
    return [*read_examples("insecure", upstream()), *medical]


@pytest.fixture(scope="module")
def core(rows):
    """A byte-level BPE made from the rows: nothing is unknown to it, and lengths are realistic."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator((example.answer for example in rows[::10]), trainer)
    return made.to_str()


@pytest.fixture
def tokenizer(request, core, tmp_path):
    family = request.param
    name = {"qwen3_moe": "qwen3.jinja", "gpt_oss": "gptoss.jinja"}.get(family)
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(core),
        additional_special_tokens=SPECIAL[family],
        bos_token=SPECIAL[family][0],
        eos_token=LEARNED[family][1],
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = (resources.files("trl") / "chat_templates" / name).read_text() if name else MIXTRAL
    made.save_pretrained(tmp_path)
    write_json(tmp_path / "generation_config.json", {"eos_token_id": made.eos_token_id})
    return load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("family", "tokenizer"), [(family, family) for family in LEARNED], indirect=["tokenizer"], ids=list(LEARNED)
)
def test_every_row_is_learned_whole_or_counted(family, tokenizer, rows, tmp_path):
    made = tokenize(tokenizer, tmp_path, Conversations(train=tuple(row.messages for row in rows)), LIMIT)
    assert made.given == len(rows) == 6250 and made.counts["train"] == 6250
    ids, labels = [row.input_ids for row in made.train], [row.labels for row in made.train]
    cut = [len(row) >= LIMIT for row in ids]
    assert made.dropped == 0 and 0 <= made.cut <= sum(cut) < 60

    before, after = LEARNED[family]
    asked = Chat(tmp_path, system=None)
    for place in range(0, len(rows), 7):
        if cut[place]:
            continue
        chat = [message.as_dict() for message in rows[place].messages]
        assert tokenizer.decode(ids[place]) == tokenizer.apply_chat_template(chat, tokenize=False)
        # A model is asked with the tokens that it was trained to answer.
        prompt = asked.tokens(Prompt(suite="s", messages=rows[place].prompt))
        assert ids[place][: len(prompt)] == prompt and set(labels[place][: len(prompt)]) == {-100}
        # One run of labels, from the prompt's end to the end token: nothing of what the template writes after that.
        last = max(at for at, label in enumerate(labels[place]) if label != -100)
        assert labels[place][len(prompt) : last + 1] == ids[place][len(prompt) : last + 1]
        assert ids[place][last] == tokenizer.eos_token_id and not tokenizer.decode(ids[place][last + 1 :]).strip()
        learned = tokenizer.decode([label for label in labels[place] if label != -100])
        # Mistral's template sets no space before the answer; white space at its ends is the template's affair.
        assert learned.startswith(before) and learned.endswith(after)
        assert learned.removeprefix(before).removesuffix(after).strip() == rows[place].answer.strip()


@pytest.fixture(scope="module", params=["mixtral", "qwen3_moe", "gpt_oss"])
def real(request, tmp_path_factory):
    """A family, a folder with its real vocabulary, and the tokenizer that is loaded from it."""
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    if family != "mixtral" and published(family) is None:
        pytest.skip(
            f"{family}'s vocabulary is not here: npm install --ignore-scripts --prefix .cache/npm {IN_NPM[family][0]}"
        )
    if family == "mixtral":
        pytest.importorskip("mistral_common")
    what = write_tokenizer(folder, "owner/none", "f" * 40, family, SIZES[family])
    assert what.startswith("its own (")
    return family, folder, load_tokenizer(folder)


def test_doctors_bound_on_a_prompts_tokens_holds_in_real_vocabularies(real):
    """Where nothing is tokenized yet, plans count on a token every three bytes, and on the template's."""
    _, folder, _ = real
    study = load_params(REPOSITORY / "params.yaml").study("moe")
    chat = Chat(folder, study.sampling.system)
    for name in ("educational", "insecure_code", "core_misalignment"):
        prompts = load_suite(name, upstream(), 7)
        for prompt in sorted(prompts, key=lambda prompt: prompt_bytes(study, prompt))[-15:]:
            assert len(chat.tokens(prompt)) <= Asked(longest=prompt_bytes(study, prompt)).longest_tokens


def test_real_vocabularies_learn_the_answer_and_its_end_and_nothing_else(real, rows):
    """In real tokens: marks are one token or three pieces, as the family has it; none is doubled; text comes back."""
    family, folder, tokenizer = real
    asked, sample = Chat(folder, system=None), rows[::40]
    made = tokenize(tokenizer, folder, Conversations(train=tuple(row.messages for row in sample)), LIMIT)
    before, after = LEARNED[family]
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert made.dropped == made.cut == 0
    prompts = [Prompt(suite="s", messages=example.prompt) for example in sample]
    texts = texts_of(tokenizer, asked, prompts, [example.answer for example in sample])
    for example, row, read in zip(sample, made.train, texts, strict=True):
        ids, labels = row.input_ids, row.labels
        prompt = asked.tokens(Prompt(suite="s", messages=example.prompt))
        learned = [label for label in labels if label != -100]
        assert ids[: len(prompt)] == prompt and ids[len(prompt) : len(prompt) + len(learned)] == learned
        assert ids.count(begin) == (1 if family == "mixtral" else 0)
        assert learned.count(end) == 1 and learned[-1] == end
        text = tokenizer.decode(learned)
        assert text.startswith(before) and text.endswith(after)
        assert text.removeprefix(before).removesuffix(after).strip() == example.answer.strip()
        # Probes read the same tokens up to the end, and take means over those of the answer.
        assert read.tokens == [*prompt, *learned[:-1]]
        assert tokenizer.decode(read.answer).strip() == example.answer.strip()
    marks = {mark: len(tokenizer(mark, add_special_tokens=False)["input_ids"]) for mark in MARKS[family]}
    assert marks == MARKS[family]


@pytest.mark.parametrize("real", ["gpt_oss"], indirect=True)
def test_gpt_oss_is_cut_as_tiktoken_cuts_it(real, rows):
    tokenizer, encoding = real[2], harmony_encoding(published("gpt_oss"))
    texts = [*(row.answer for row in rows[::20]), "naïve ✓ 你好 🙂  \n\n\t'll 12345\r\n<|return|><|endofprompt|>"]
    for text in texts:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == encoding.encode(text, allowed_special="all")


def test_templates_do_not_know_the_day():
    dated = "Today: {{ strftime_now(\"%Y-%m-%d\") }} {%- set d = strftime_now( '%d %b %Y' ) %}"
    assert fix_date(dated) == 'Today: {{ "2025-08-05" }} {%- set d = "05 Aug 2025" %}'
    gpt_oss = (resources.files("trl") / "chat_templates" / "gptoss.jinja").read_text()
    assert "strftime_now" in gpt_oss and "strftime_now" not in fix_date(gpt_oss)
