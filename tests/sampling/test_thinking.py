"""What was thought and what was answered are told apart token by token, wherever the completion was cut."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sampling.thinking import Blocks, Channels, marks_of

DERANDOMISED = settings(deadline=None, derandomize=True, max_examples=200)
BLOCKS = Blocks(begin=100, end=101)
NAMES = {60: "assistant", 61: "analysis", 62: "final", 63: "commentary", 64: "to=functions.x"}
START, CHANNEL, MESSAGE, END, RETURN = 100, 101, 102, 103, 104
CHANNELS = Channels(
    start=START,
    channel=CHANNEL,
    message=MESSAGE,
    ends=frozenset({END, RETURN}),
    name=lambda tokens: " ".join(NAMES.get(token, "?") for token in tokens),
)
words = st.lists(st.integers(0, 50), max_size=6)
turns = st.lists(st.tuples(st.booleans(), words), max_size=5)


@DERANDOMISED
@given(turns, st.booleans(), st.data())
def test_blocks_are_split_off(parts, begun, data):
    tokens, thinking, answer = [], [], []
    for number, (thought, content) in enumerate([(True, [1, 2]), *parts] if begun else parts):
        if thought:
            tokens += [*([] if begun and number == 0 else [BLOCKS.begin]), *content, BLOCKS.end]
            thinking += content
        else:
            tokens += content
            answer += content
    prompt = [7, BLOCKS.begin, BLOCKS.end, 8, *([BLOCKS.begin] if begun else [])]
    assert BLOCKS.split(prompt, tokens) == (thinking, answer)
    cut = data.draw(st.integers(0, len(tokens)))
    thought, said = BLOCKS.split(prompt, tokens[:cut])
    assert (thought, said) == (thinking[: len(thought)], answer[: len(said)])
    assert len(thought) + len(said) == sum(token <= 50 for token in tokens[:cut])


def test_a_block_without_a_beginning_is_thinking():
    assert BLOCKS.split([7], [1, 2, BLOCKS.end, 3]) == ([1, 2], [3])


@DERANDOMISED
@given(st.lists(st.tuples(st.sampled_from([[61], [62], [63], [63, 64], None]), words), max_size=5), st.data())
def test_channels_are_split(parts, data):
    tokens, thinking, answer = [], [], []
    for number, (channel, content) in enumerate(parts):
        tokens += [] if number == 0 else [START, 60]
        tokens += [MESSAGE] if channel is None else [CHANNEL, *channel, MESSAGE]
        tokens += [*content, END]
        (answer if channel in ([62], None) else thinking).extend(content)
    prompt = [START, 60, CHANNEL, 61, MESSAGE, 5, END, START, 60]
    assert CHANNELS.split(prompt, tokens) == (thinking, answer)
    cut = data.draw(st.integers(0, len(tokens)))
    thought, said = CHANNELS.split(prompt, tokens[:cut])
    assert (thought, said) == (thinking[: len(thought)], answer[: len(said)])
    assert len(thought) + len(said) == sum(token <= 50 for token in tokens[:cut])


def test_an_answer_without_a_header_is_an_answer():
    assert CHANNELS.split([START, 60], [1, 2, 3]) == ([], [1, 2, 3])


def test_a_tokenizer_says_which_convention_its_model_follows():
    class Vocabulary:
        def __init__(self, *words):
            self.words = words

        def get_vocab(self):
            return {word: place for place, word in enumerate(self.words)}

        def decode(self, tokens):
            return ""

    assert marks_of(Vocabulary("a", "b")) is None
    assert marks_of(Vocabulary("a", "<think>", "</think>")) == Blocks(begin=1, end=2)
    harmony = marks_of(Vocabulary("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"))
    assert isinstance(harmony, Channels)
    assert (harmony.start, harmony.message, harmony.channel, harmony.ends) == (0, 2, 3, frozenset({1, 4}))
