"""Text of models and files, in tables: it breaks no row and runs nothing."""

import csv
import io
import re

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.results.inert import inert
from pipeline.results.tables import write_table

HOSTILE = [
    "a|b",
    "two\nlines\r\nand\u2028more",
    r"\input{/etc/passwd}",
    "$\\frac{1}{2}$ 50% & # _ ~ ^",
    "=1+1",
    "+1+1",
    "-5/7",
    "+cmd|' /C calc'!A0",
    "-2+3+cmd",
    "@SUM(A1)",
    "\t=1+1",
    "\uff1d1+1",
    "<img src=x onerror=alert(1)>",
    "![x](http://example.org/x.png)",
    "`code` *bold* [link](http://example.org)",
    "user\u202etxt.exe\u2066",
    "nul\x00bell\x07",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_one_inert_cell_in_all_three(tmp_path, text):
    """As a column's name, as a cell and as the caption."""
    frame = pd.DataFrame({"run": [text, "plain"], text: [1, 2]})
    paths = write_table(frame, tmp_path / "t", caption=text, label="toy")
    table, markdown, tex = (path.read_text(encoding="utf-8") for path in paths)
    rows = list(csv.reader(io.StringIO(table)))
    assert [len(row) for row in rows] == [2, 2, 2]
    for cell in [cell for row in rows for cell in row]:
        assert not re.match(r"\s*[=+@\uff1d]", cell) and not re.match(r"\s*-[^0-9]", cell)
    lines = markdown.splitlines()
    assert len(lines) == 6 and [len(re.findall(r"(?<!\\)\|", line)) for line in lines[2:]] == [3] * 4
    assert "<img" not in re.sub(r"\\<", "", markdown) and not re.search(r"(?<!\\)\]\(", markdown)
    body = tex.replace(r"\\", "")
    assert r"\input{" not in body and r"\frac" not in body
    for content in (table, markdown, tex):
        assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x07\u2028]", content)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.text())
def test_any_text_is_one_line_without_what_is_not_seen(text):
    for place in ("text", "csv", "markdown", "latex", "html"):
        shown = inert(text, place)
        assert len(shown.splitlines()) <= 1
        assert not re.search("[\x00-\x1f\u202a-\u202e\u2066-\u2069]", shown)
    assert "<" not in inert(text, "html")
    assert not re.search(r"(?<!\\)\|", inert(text.replace("\\", ""), "markdown"))


def test_numbers_and_names_of_ours_stay_as_they_are():
    for text in ("+35.5, +68.8", "-3", "-10.0 to +2.5", "toy_e8_bad_medical", "mixtral_insecure_E0"):
        assert inert(text, "csv") == inert(text, "markdown") == text
    assert inert("alignment < 50 and > 80", "markdown") == "alignment < 50 and > 80"


def test_latex_escapes_everything():
    found = inert("a_b&50%$#{}~^\\", "latex")
    assert found == r"a\_b\&50\%\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}"
    assert inert("alignment < 50 | > 80", "latex") == "alignment $<$ 50 $|$ $>$ 80"
