"""Answered requests outlive a killed stage.

Requests are cut into batches before anything is sampled, so that batches are the same after a restart. A
finished batch is one file, named by the hash of what is asked in it, in a folder named by the hash of
everything else that determines it.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.common.files import read_json, sha256_json, write_json
from pipeline.sampling.backend import Completion, Request
from pipeline.sampling.progress import Progress


def complete_all(
    requests: list[Request],
    batch: int,
    identity: dict[str, Any],
    folder: Path,
    complete: Callable[[list[list[Request]]], Iterator[tuple[int, list[Completion]]]],
) -> list[Completion]:
    """Completions of all requests in order, from the cache where they are there.

    batch: how many requests are completed, and kept, together. `identity` says what answers (weights, adapter,
    decoding). complete: what a backend's `complete` does for a model; called only if something is left to ask.
    """
    batches = [requests[begin : begin + batch] for begin in range(0, len(requests), batch)]
    answered = folder / sha256_json(identity)
    paths = [answered / f"{_asked(chunk)}.json" for chunk in batches]
    missing = [place for place, path in enumerate(paths) if not path.exists()]
    if missing:
        left = [batches[place] for place in missing]
        with closing(Progress(len(requests), len(requests) - sum(map(len, left)))) as progress:
            for number, completions in complete(left):
                write_json(paths[missing[number]], [asdict(completion) for completion in completions])
                progress.answered(completions)
    return [Completion(**values) for path in paths for values in read_json(path)]


def _asked(requests: list[Request]) -> str:
    return sha256_json([[request.prompt.chat(), request.sample, request.seed] for request in requests])
