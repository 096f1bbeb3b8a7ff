"""Text that other people's models and files wrote, made inert for where it is shown.

A model's answer, a run's or a suite's name, a file's column: put into a table, each could break its row, start
a formula in a spreadsheet, run a LaTeX command, load a picture into a Markdown page, or turn the reading order
around. Every writer of results passes its text through `inert`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

Place = Literal["text", "csv", "markdown", "latex", "html"]
# Zero-width and direction marks, line and paragraph separators, and the controls of embedding and isolation.
_INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")
_NUMBER = r"[-+]?\d[\d.,]*%?"  # "-3.2 to 4.5" is none that a spreadsheet reckons with; "+1+1" is
_PLAIN_NUMBERS = re.compile(rf"{_NUMBER}(?:(?: to |[;,:] ?){_NUMBER}| \({_NUMBER}(?: to {_NUMBER})?\))*|-")
_MARKDOWN = re.compile(r"([\\`*\[\]$|~]|<(?=[A-Za-z/!?]))")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"}
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "<": "$<$",  # in text, LaTeX's default font encoding prints these three as other characters
    ">": "$>$",
    "|": "$|$",
    "\N{EN DASH}": "--",
    "\N{MINUS SIGN}": "$-$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$",
}


def inert(text: str, place: Place = "text") -> str:
    """`text` on one line, without characters that are not seen, and with what `place` would act on made literal.

    csv: a cell that a spreadsheet would take for a formula gets an apostrophe before it, which shows it as text;
    cells of numbers alone stay as they are. The csv module does the quoting. markdown, latex, html: special
    characters are escaped.
    """
    shown = "".join(
        " " if it.isspace() else it
        for it in _INVISIBLE.sub("", text)
        if it.isspace() or unicodedata.category(it) != "Cc"
    )
    if place == "csv":
        return f"'{shown}" if _FORMULA.match(shown) and not _PLAIN_NUMBERS.fullmatch(shown) else shown
    if place == "markdown":
        return _MARKDOWN.sub(r"\\\1", shown)
    if place == "latex":
        return "".join(_LATEX.get(it, it) for it in shown)
    if place == "html":
        return "".join(_HTML.get(it, it) for it in shown)
    return shown
