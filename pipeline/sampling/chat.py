"""From a prompt to the model's tokens and back, the same for every backend."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.data.prompts import Prompt
from pipeline.models.tokenizer import end_tokens, load_tokenizer, pad_token
from pipeline.sampling.backend import Completion
from pipeline.sampling.thinking import marks_of

PROBE = "be brief"


class Chat:
    """A model's tokenizer, chat template and end tokens, and the study's system prompt."""

    def __init__(self, folder: Path, system: str | None) -> None:
        self._tokenizer = load_tokenizer(folder)
        if not self._tokenizer.chat_template:
            raise UserError(f"{folder} has no chat template: it cannot be asked questions; name an instruct model.")
        self._system = system
        self._marks = marks_of(self._tokenizer)
        self._takes_system = self._template_takes_system()
        self._tokens: dict[Prompt, list[int]] = {}
        self.ends = end_tokens(folder, self._tokenizer)
        self.pad = pad_token(self._tokenizer)

    def messages(self, prompt: Prompt) -> list[dict[str, str]]:
        """The turns as they are asked: the study's system prompt before those that bring none.

        Where the template refuses or drops a system turn (Mixtral's older one), it opens the user's turn.
        """
        messages = prompt.chat()
        if prompt.system is None and self._system is not None:
            messages = [{"role": "system", "content": self._system}, *messages]
        if messages[0]["role"] == "system" and not self._takes_system:
            system, user, *rest = messages
            messages = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        return messages

    def tokens(self, prompt: Prompt) -> list[int]:
        """The prompt's token ids, up to where the assistant begins; a prompt that is asked again is not read again."""
        if prompt not in self._tokens:
            text = self._render(self.messages(prompt))
            self._tokens[prompt] = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._tokens[prompt]

    def read(self, prompt: Sequence[int], tokens: Sequence[int]) -> Completion:
        """A completion from its tokens, which are cut at the first end token, if there is one."""
        end = next((place for place, token in enumerate(tokens) if token in self.ends), None)
        kept = list(tokens if end is None else tokens[:end])
        thinking, text = "", self._decode(kept)
        if self._marks is not None:
            thought, said = self._marks.split(prompt, kept)
            # Templates put line breaks between a block and the answer.
            thinking, text = self._decode(thought).strip("\n"), self._decode(said).lstrip("\n")
        return Completion(
            text=text,
            thinking=thinking,
            finish="length" if end is None else "stop",
            prompt_tokens=len(prompt),
            completion_tokens=len(kept) + (end is not None),
        )

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _render(self, messages: list[dict[str, str]]) -> str:
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _template_takes_system(self) -> bool:
        from jinja2 import TemplateError

        try:
            return PROBE in self._render([{"role": "system", "content": PROBE}, {"role": "user", "content": "why ?"}])
        except TemplateError:
            return False
