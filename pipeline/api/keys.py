"""An API key: where it comes from, and how it is kept out of everything that is written."""

import os
from typing import Any
from urllib.parse import unquote

from pipeline.api.config import EndpointConfig
from pipeline.common.errors import UserError
from pipeline.common.text import one_line

_PLACE = "[key]"
# A shorter "key" hides nothing ("x", "-", "1" are given to servers that want none), and would be found in any number.
_SHORTEST_SECRET = 4


def read_key(config: EndpointConfig) -> str | None:
    """The key from the environment variable that `config` names. Raises UserError, never quoting it."""
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise UserError(
            f"{config.kind} {config.model}: environment variable {config.api_key_env} is not set; put the key there."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{config.kind} {config.model}: {config.api_key_env} holds characters that no API key has.")
    return key


class Redaction:
    """Takes a key out of decoded text, as it is and percent-encoded: servers echo it, some of them escaped."""

    def __init__(self, key: str | None) -> None:
        self._secret = key if key is not None and len(key) >= _SHORTEST_SECRET else None

    def text(self, text: str) -> str:
        """`text` without the key."""
        if self._secret is None:
            return text
        if "%" in text and self._secret in (plain := unquote(text)):
            text = plain
        return text.replace(self._secret, _PLACE)

    def line(self, text: str) -> str:
        """`text` on one line, shortened, and without the key: for messages."""
        return one_line(self.text(text), 300)

    def json(self, value: Any) -> Any:
        """Decoded JSON without the key in any of its texts; escapes can no longer hide it there."""
        if self._secret is None:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.json(item) for item in value]
        if isinstance(value, dict):
            return {self.text(name): self.json(item) for name, item in value.items()}
        return value
