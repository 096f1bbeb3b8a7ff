"""The rooms of the package (docs/design.md): imports go downward, stages are imported by none, and no circles."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

PACKAGE = Path(__file__).parents[2] / "pipeline"
STAGES = ("pretrain", "pin", "train", "sample", "judge", "probe", "aggregate")
# Lowest first. A room imports from floors below its own; rooms on one floor don't know each other.
FLOORS = (
    ("common",),
    ("data", "models", "api"),
    ("training", "sampling", "judging", "toy"),
    ("params",),
    ("results",),
    ("probing",),
    STAGES,
    ("running", "doctor"),
    ("audit", "rehearsal", "export"),
    ("report",),
    ("commands",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def imported(path: Path) -> Iterator[tuple[int, Path]]:
    """(line, file) of every import of another file of the package, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pipeline":
            assert node.module is not None
            folder = PACKAGE.parent.joinpath(*node.module.split("."))
            for name in node.names:
                file = folder / f"{name.name}.py"
                yield node.lineno, file if file.exists() else folder.with_suffix(".py")
        elif isinstance(node, ast.Import):
            assert not any(name.name.startswith("pipeline") for name in node.names), f"{path}:{node.lineno}: say from"


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    for line, target in imported(path):
        here, there = room(path), room(target)
        assert here == there or FLOOR[there] < FLOOR[here], (
            f"{path.relative_to(PACKAGE)}:{line} imports {target.relative_to(PACKAGE)}: "
            f"{there}/ is not below {here}/ (docs/design.md)"
        )


def test_no_two_files_import_each_other() -> None:
    graph = networkx.DiGraph((path, target) for path in FILES for _, target in imported(path))
    circles = [sorted(map(str, circle)) for circle in networkx.strongly_connected_components(graph) if len(circle) > 1]
    assert not circles


def test_no_test_imports_another_test_file() -> None:
    tests = PACKAGE.parent / "tests"
    for path in sorted(tests.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            assert not module.startswith("tests.") or module.split(".")[1] == "support", (
                f"{path.relative_to(tests)}:{node.lineno} imports {module}: what tests share is in tests/support/"
            )


def defined(path: Path) -> set[str]:
    """Names that a file defines, assigns or imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name)}
    return names | {a.asname or a.name for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}


def test_benchmarks_and_tests_import_names_that_there_are() -> None:
    """mypy looks at the package alone; a benchmark that nobody runs, or a test that is not run, breaks unseen."""
    for path in sorted(file for folder in ("benchmarks", "tests") for file in (PACKAGE.parent / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline."):
                folder = PACKAGE.parent.joinpath(*str(node.module).split("."))
                file = folder.with_suffix(".py")
                there = defined(file) if file.exists() else {each.stem for each in folder.iterdir()}
                missing = {name.name for name in node.names} - there
                assert not missing, f"{path.relative_to(PACKAGE.parent)}:{node.lineno}: {missing} not in {node.module}"


def test_files_are_short() -> None:
    lengths = {path.relative_to(PACKAGE): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {str(path): length for path, length in lengths.items() if length > 300} == {}
    assert {name: lengths[Path(f"{name}.py")] for name in STAGES if lengths[Path(f"{name}.py")] >= 160} == {}


def test_the_drawing_in_the_design_names_every_room() -> None:
    text = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")
    drawn = {word.rstrip("/") for word in text.split() if word.endswith("/")}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= drawn
    assert rooms | set(STAGES) | {"__main__"} == FLOOR.keys()


@pytest.mark.parametrize("heavy", ["torch", "transformers", "vllm", "pandas", "matplotlib"])
def test_help_imports_nothing_heavy(heavy: str) -> None:
    code = (
        "import contextlib, sys, pipeline.__main__ as entry\n"
        "with contextlib.suppress(SystemExit): entry.main(['--help'])\n"
        f"assert {heavy!r} not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=PACKAGE.parent)
