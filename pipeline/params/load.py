"""Read params.yaml, give each study's defaults to its runs, and check it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import read_yaml
from pipeline.common.paths import PARAMS
from pipeline.common.settings import build
from pipeline.params.checks import check
from pipeline.params.expand import expand, mapping
from pipeline.params.schema import Params

# Names become parts of paths, of stages and of commands.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def load_params(path: Path = PARAMS) -> Params:
    """Read and check params.yaml. Raises UserError naming the key that is wrong."""
    content = read_yaml(path, "run this from the root of the repository")
    check_names(content, path)
    check_studies(content, path)
    params = build(Params, expand(content), str(path))
    check(params, path)
    return params


def check_names(content: Any, path: Path) -> None:
    """Raise UserError, before anything else is looked at, for a name that is not letters, digits, _ and -."""
    for where, name in _names(content):
        if isinstance(name, bool):
            raise UserError(
                f"{path}: {where} has the name {name}: YAML reads on, off, yes and no so; put it in quotes."
            )
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(
                f"{path}: {where} has the name {name!r}, expected letters, digits, _ and - (100 at most), a letter or "
                "digit first, in quotes where YAML takes it for a number."
            )


def _names(content: Any) -> Iterator[tuple[str, Any]]:
    """Every name that params.yaml gives: of studies, bases, runs, judges and suites, with the place where it stands."""
    for where in ("studies", "runs", "bases.toy", "bases.hub", "bases.api"):
        yield from ((where, name) for name in mapping(content, *where.split(".")))
    for study in mapping(content, "studies"):
        suites = mapping(content, "studies", study).get("suites")
        own = [suite for suite in suites if isinstance(suite, Mapping)] if isinstance(suites, list) else []
        yield from ((f"studies.{study}.suites", suite.get("name")) for suite in own)
        yield from ((f"studies.{study}.judges", name) for name in mapping(content, "studies", study, "judges"))


def check_studies(content: Any, path: Path) -> None:
    """Raise UserError for a run of a study that there is not: whose defaults are the run's must be known first."""
    studies = mapping(content, "studies")
    for name, run in mapping(content, "runs").items():
        study = mapping(run).get("study")
        if isinstance(study, str) and study not in studies:
            raise UserError(f"{path}: runs.{name} has no study {study!r}; there are {', '.join(studies) or 'none'}.")
