"""Text from outside, made fit for a terminal and for SQLite."""

from typing import Any


def one_line(text: Any, most: int) -> str:
    """At most `most` characters of `text` on one line, without control characters (no terminal escapes)."""
    visible = "".join(c if c.isprintable() else " " for c in str(text)[: 4 * most])
    return " ".join(visible.split())[:most]


def storable(text: str) -> str:
    r"""`text` with lone surrogates, which JSON can hold and UTF-8 cannot, written as \udXXX."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
