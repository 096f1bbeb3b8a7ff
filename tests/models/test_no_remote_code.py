"""No repository's own Python is ever run: every call that could says so, for transformers would ask on stdin."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pipeline"
# These read JSON alone.
DATA_ONLY = {"GenerationConfig"}


def calls(path: Path):
    """(line, name, keywords) of every call of an Auto class, or of anything else's from_pretrained."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        loads = node.func.attr == "from_pretrained" or (node.func.attr == "from_config" and owner.startswith("Auto"))
        if loads and owner not in DATA_ONLY:
            yield node.lineno, owner, {word.arg: word.value for word in node.keywords}


def test_every_loading_call_says_trust_remote_code_false():
    found = [(path, call) for path in sorted(PACKAGE.rglob("*.py")) for call in calls(path)]
    assert len(found) >= 10
    for path, (line, owner, words) in found:
        value = words.get("trust_remote_code")
        said = isinstance(value, ast.Constant) and value.value is False
        assert said, f"{path.relative_to(PACKAGE)}:{line}: {owner} is called without trust_remote_code=False"


@pytest.mark.parametrize(
    ("line", "count"),
    [("AutoConfig.from_pretrained(x)", 1), ("AutoModel.from_config(c)", 1), ("GenerationConfig.from_pretrained(x)", 0)],
)
def test_the_walk_sees_a_call(line, count, tmp_path):
    (tmp_path / "f.py").write_text(line)
    assert len(list(calls(tmp_path / "f.py"))) == count
