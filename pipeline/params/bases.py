"""A study's bases by size: each one's configuration, and the order in which they are best worked on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pipeline.models.known import checkpoint_bytes, config_of

if TYPE_CHECKING:
    from pipeline.params.schema import Params


def config_of_base(params: Params, base: str) -> SimpleNamespace | None:
    """The configuration of a hub base, None where its sizes are not known, and of a base of another kind."""
    hub = params.bases.hub.get(base)
    return None if hub is None else config_of(hub.repository, hub.revision)


def smallest_first(params: Params, bases: Iterable[str]) -> list[str]:
    """Hub bases by their checkpoints' size; what is not known, or costs money behind an API, after all that is."""

    def size(base: str) -> float:
        config = config_of_base(params, base)
        return math.inf if config is None else checkpoint_bytes(config)

    return sorted(bases, key=size)
