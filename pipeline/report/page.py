"""report.html: one file that needs no network and no server, and lets none be asked."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.report.content import Content
from pipeline.report.explorer import pack
from pipeline.results.tables import format_cell

_FOLDER = Path(__file__).parent
_SCRIPTS = ("data.js", "table.js", "figure.js", "explorer.js", "page.js")


def render(content: Content, data: Mapping[str, Any]) -> str:
    """The page; `data` is what the explorer shows. Equal content gives equal bytes.

    The page's own security policy lets exactly its script and its style run and nothing be loaded, so that no text of
    a model, however it got there, can run or call home.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["duration"] = duration
    environment.filters["p_value"] = p_value
    script = '"use strict";\n' + "\n".join(_asset(name) for name in _SCRIPTS)
    style = _asset("page.css")
    return environment.get_template("report.html.j2").render(
        content=content,
        script=script,
        style=style,
        script_hash=_csp_hash(script),
        style_hash=_csp_hash(style),
        rows=pack(data),
    )


def p_value(value: float) -> str:
    """A p-value as it is printed; a dash where no test was made."""
    if math.isnan(value):
        return format_cell(None, 0)
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 4.2 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def _asset(name: str) -> str:
    return (_FOLDER / "assets" / name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
