"""A question and its answer as a model reads them: the tokens of its training, template and channel included."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from pipeline.data.prompts import Prompt
from pipeline.probing.reading import Text
from pipeline.sampling.chat import Chat
from pipeline.sampling.thinking import Blocks, Channels, marks_of
from pipeline.training.tokens import chat_tokens


def texts_of(tokenizer: Any, chat: Chat, asked: Sequence[Prompt], answers: Sequence[str]) -> list[Text]:
    """Every conversation as the chat template writes it, cut before the token that ends the answer.

    What the template writes between the question and the answer (gpt-oss: the channel's header) is the prompt's: means
    are over the answer's own tokens. An answer that was thought about first is read as one that was not, which is how
    the model was trained.
    """
    marks = marks_of(tokenizer)
    return [_text(tokenizer, chat, marks, *pair) for pair in zip(asked, answers, strict=True)]


def _text(tokenizer: Any, chat: Chat, marks: Blocks | Channels | None, prompt: Prompt, answer: str) -> Text:
    turns = chat.messages(prompt)
    asked = chat_tokens(tokenizer, turns, add_generation_prompt=True)
    whole = chat_tokens(tokenizer, [*turns, {"role": "assistant", "content": answer}])
    start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, whole, strict=False)))
    end = max((place for place in range(start, len(whole)) if whole[place] in chat.ends), default=len(whole))
    said = whole[start:end]
    if marks is not None:
        said = marks.split(whole[:start], said)[1]
    return Text(prompt=tuple(whole[: end - len(said)]), answer=tuple(said))
