"""Text from outside, made fit for a terminal and for SQLite."""

import re
from typing import Any


def one_line(text: Any, most: int) -> str:
    """At most `most` characters of `text` on one line, without control characters (no terminal escapes)."""
    visible = "".join(c if c.isprintable() else " " for c in str(text)[: 4 * most])
    return " ".join(visible.split())[:most]


def storable(text: str) -> str:
    r"""`text` with lone surrogates, which JSON can hold and UTF-8 cannot, written as \udXXX."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


# Characters that are not seen, or turn the text around them: controls but newline and tab, bidi controls, zero widths,
# separators that are no newlines, tags.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_FORMULA = ("=", "+", "-", "@", "\t", "'")


def visible(text: str) -> str:
    """`text` with what cannot be seen, or turns other text around, written as <U+202E>."""
    return _UNSEEN.sub(lambda found: f"<U+{ord(found[0]):04X}>", text)


def spreadsheet_text(text: str) -> str:
    """`text` for a cell of a csv file that no spreadsheet takes for a formula, and whose characters all show."""
    shown = visible(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


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
