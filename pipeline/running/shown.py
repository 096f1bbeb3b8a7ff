"""What DVC sees of params.yaml: the runs and bases of some stages, and the file parsed once.

dvc.yaml makes a stage of every run and base of every study, and DVC builds all of them, 650, before it looks at one;
it parses params.yaml again for every stage, and looks through all of it for every key.
"""

import contextlib
import functools
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.common.kept_hashes import file_state
from pipeline.common.paths import PARAMS


@contextlib.contextmanager
def shown_only(stages: Collection[str]) -> Iterator[None]:
    """Have DVC, in this process, see no runs and bases in params.yaml but those of these stages.

    They must be named with all that they depend on, or DVC must not be asked to look at that.
    """
    import dvc.dependency.param as params
    from dvc.utils.serialize import LOADERS, load_yaml

    names = {stage.partition("@")[2] for stage in stages}

    @functools.lru_cache(maxsize=1)
    def read(path: str, *_state: tuple[str, int]) -> Any:
        return needed_by(names, load_yaml(path))

    def load(path: str, fs: Any = None, **options: Any) -> Any:
        if Path(path).name != str(PARAMS):
            return load_yaml(path, fs=fs, **options)
        return read(path, *file_state(Path(path)).items())  # somebody may edit it meanwhile

    LOADERS[".yaml"], looked_up = load, params.dpath
    params.dpath = SimpleNamespace(get=_value_at)
    try:
        yield
    finally:
        del LOADERS[".yaml"]
        params.dpath = looked_up


def needed_by(names: Collection[str], content: dict[str, Any]) -> dict[str, Any]:
    """The content of params.yaml without the runs and bases of other names."""
    bases = {kind: _only(names, bases) for kind, bases in content["bases"].items()}
    return content | {"bases": bases, "runs": _only(names, content["runs"])}


def _only(names: Collection[str], entries: dict[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in entries.items() if name in names}


def _value_at(content: Any, key: str, separator: str) -> Any:
    """As dpath.get, for a key of names alone: without wildcards or places in lists. Raises KeyError."""
    for part in key.split(separator):
        if not isinstance(content, dict):
            raise KeyError(key)
        content = content[part]
    return content
