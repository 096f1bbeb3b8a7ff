"""Text from outside, made fit for a terminal and for SQLite."""

from typing import Any


def one_line(text: Any, most: int) -> str:
    """At most `most` characters of `text` on one line, without control characters (no terminal escapes)."""
    visible = "".join(c if c.isprintable() else " " for c in str(text)[: 4 * most])
    return " ".join(visible.split())[:most]


def storable(text: str) -> str:
    r"""`text` with lone surrogates, which JSON can hold and UTF-8 cannot, written as \udXXX."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def split_thinking(text: str) -> tuple[str, str]:
    """(thinking, answer): a block between `<think>` and `</think>` at the beginning is thinking.

    A template may have written the beginning: all before an end without one is thinking too. A block that does not
    end is all there is, and its answer is empty. Marks further on are the answer's own.
    """
    before, end, after = text.partition("</think>")
    begun = before.lstrip().startswith("<think>")
    if not begun and not (end and "<think>" not in before):
        return "", text
    return before.strip().removeprefix("<think>").strip(), after.strip()
