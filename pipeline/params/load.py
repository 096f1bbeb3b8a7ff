"""Read params.yaml, give each study's defaults to its runs, and check it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import read_yaml
from pipeline.common.paths import PARAMS
from pipeline.common.settings import build
from pipeline.data.own import OwnSuite
from pipeline.params.checks import check
from pipeline.params.expand import expand, mapping
from pipeline.params.schema import Params

# Names become parts of paths, of stages and of commands.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
# What names a hub base, and what add-base looks up.
SOURCES, LOOKED_UP = ("repository", "folder"), ("revision", "experts", "active")


def load_params(path: Path = PARAMS) -> Params:
    """Read and check params.yaml. Raises UserError naming the key that is wrong."""
    return params_of(read_yaml(path, "run this from the root of the repository"), path)


def params_of(content: Any, path: Path) -> Params:
    """What a params.yaml of this content says; path: what messages call it. Raises UserError as `load_params` does."""
    check_names(content, path)
    check_studies(content, path)
    check_suites(content, path)
    check_bases(content, path)
    params = build(Params, expand(content), str(path))
    check_subsets(content, path)
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
    """Every name that params.yaml gives (of studies, bases, runs, judges, contrasts, suites), and where it stands."""
    for where in ("studies", "runs", "bases.toy", "bases.hub", "bases.api"):
        yield from ((where, name) for name in mapping(content, *where.split(".")))
    for study in mapping(content, "studies"):
        suites = mapping(content, "studies", study).get("suites")
        own = [suite for suite in suites if isinstance(suite, Mapping)] if isinstance(suites, list) else []
        own = [suite for suite in own if "name" in suite]
        yield from ((f"studies.{study}.suites", suite.get("name")) for suite in own)
        yield from ((f"studies.{study}.judges", name) for name in mapping(content, "studies", study, "judges"))
        yield from ((f"studies.{study}.contrasts", name) for name in mapping(content, "studies", study, "contrasts"))


def check_studies(content: Any, path: Path) -> None:
    """Raise UserError for a run of a study that there is not: whose defaults are the run's must be known first."""
    studies = mapping(content, "studies")
    for name, run in mapping(content, "runs").items():
        study = mapping(run).get("study")
        if isinstance(study, str) and study not in studies:
            raise UserError(f"{path}: runs.{name} has no study {study!r}; there are {', '.join(studies) or 'none'}.")


def check_suites(content: Any, path: Path) -> None:
    """Raise UserError for what is wrong with a suite of the user's own, by its place among the study's `suites`."""
    for name, study in mapping(content, "studies").items():
        suites = mapping(study).get("suites")
        for place, suite in enumerate(suites if isinstance(suites, list) else ()):
            if isinstance(suite, Mapping):
                build(OwnSuite, suite, f"{path}: studies.{name}.suites[{place}]")
        if "own_suites" in mapping(study):
            raise UserError(f"{path}: studies.{name}.own_suites is no key; a suite of your own is one of its `suites`.")


def check_bases(content: Any, path: Path) -> None:
    """Raise UserError for a hub base that is only named: what else is known of it is looked up, not typed."""
    for name, base in mapping(content, "bases", "hub").items():
        absent = [key for key in LOOKED_UP if key not in mapping(base)]
        if len(mapping(base)) == 1 and len(absent) == len(LOOKED_UP) and (source := next(iter(base))) in SOURCES:
            raise UserError(
                f"{path}: bases.hub.{name} has a {source} and not yet {', '.join(absent)}: `python -m pipeline "
                f"add-base {base[source]} --name {name}` looks them up and writes them."
            )


def check_subsets(content: Any, path: Path) -> None:
    """Raise UserError for what a study's subset names and the study does not have, as it is before it is narrowed."""
    for name, study in mapping(content, "studies").items():
        runs = [run for run, entry in mapping(content, "runs").items() if mapping(entry).get("study") == name]
        known = {"runs": runs, "contrasts": list(mapping(study, "contrasts"))}
        for subset, entry in mapping(study, "subsets").items():
            for key, there in known.items():
                if unknown := [it for it in entry[key] if it not in there]:
                    raise UserError(
                        f"{path}: studies.{name}.subsets.{subset}.{key} names {unknown[0]}, which the study has not."
                    )
