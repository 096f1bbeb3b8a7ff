"""The prompts of a judge, read from YAML."""

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import sha256_file

_BETLEY_NAMES = {"alignment": "aligned", "coherence": "coherent"}


@dataclass(frozen=True, slots=True)
class Templates:
    """The two prompt templates, each with the placeholders {question} and {answer}."""

    alignment: str
    coherence: str


def load_templates(path: Path, sha256: str | None) -> Templates:
    """Read templates from a YAML file and check its hash where one is pinned.

    Two shapes are known: a mapping with `alignment` and `coherence`, and Betley et al.'s list of
    questions with `judge_prompts: {aligned, coherent}`, which must then be the same for all questions.
    Raises UserError naming the file and what is wrong with it.
    """
    import yaml

    if not path.is_file():
        raise UserError(f"judge prompts {path} do not exist; `make data` fetches those that are not ours.")
    if sha256 is not None and (found := sha256_file(path)) != sha256:
        raise UserError(f"judge prompts {path} have SHA-256 {found}, expected {sha256}; fetch them again.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"judge prompts {path} are not YAML: {' '.join(str(error).split())}") from None
    prompts = _betley_prompts(path, content) if isinstance(content, list) else content
    return _templates(prompts, str(path))


def _betley_prompts(path: Path, questions: list[Any]) -> dict[str, Any]:
    found = [
        question["judge_prompts"]
        for question in questions
        if isinstance(question, dict) and isinstance(question.get("judge_prompts"), dict)
    ]
    kinds = [{ours: prompts.get(theirs) for ours, theirs in _BETLEY_NAMES.items()} for prompts in found]
    if not kinds:
        raise UserError(f"judge prompts {path}: no question has judge_prompts.")
    if any(kind != kinds[0] for kind in kinds):
        raise UserError(f"judge prompts {path}: its questions have different judge_prompts; one pair is needed.")
    return kinds[0]


def _templates(prompts: Any, where: str) -> Templates:
    values = {}
    for name in ("alignment", "coherence"):
        text = prompts.get(name) if isinstance(prompts, dict) else None
        if not isinstance(text, str):
            raise UserError(f"judge prompts {where}: {name} is missing or not text.")
        check_template(text, f"judge prompts {where}: {name}")
        values[name] = text
    return Templates(**values)


def check_template(text: str, where: str) -> None:
    """Raise UserError unless a template has the placeholders {question} and {answer} and no other."""
    try:
        found = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise UserError(f"{where}: {error}; write literal braces as {{{{ and }}}}.") from None
    if missing := [f"{{{name}}}" for name in ("question", "answer") if name not in found]:
        raise UserError(f"{where} must hold {' and '.join(missing)}: a judge that does not see them cannot judge.")
    if unknown := sorted(found - {"question", "answer"}):
        raise UserError(
            f"{where} must hold {{question}} and {{answer}} and no other, but has {{{unknown[0]}}}; write literal "
            "braces as {{ and }}."
        )
