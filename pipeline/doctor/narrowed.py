"""params.yaml with a part of a study, or with other seeds, to reckon with."""

import fnmatch
from collections.abc import Sequence

from pipeline.common.errors import UserError
from pipeline.params.schema import Params


def only(params: Params, name: str, patterns: list[str]) -> Params:
    """params with those of the study's runs that fit a pattern. Raises UserError when none does."""
    runs = {
        run: entry
        for run, entry in params.runs.items()
        if entry.study != name or any(fnmatch.fnmatchcase(run, pattern) for pattern in patterns)
    }
    if not any(entry.study == name for entry in runs.values()):
        raise UserError(
            f"no run of study {name} fits {' '.join(patterns)}; there are {', '.join(params.runs_of(name))}."
        )
    # Of a run that continues another, the base is known from all of them.
    needed = {link for run in runs for link in params.chain(run)}
    return params.model_copy(update={"runs": {run: params.runs[run] for run in params.runs if run in needed}})


def with_seeds(params: Params, name: str, seeds: Sequence[int]) -> Params:
    """params with a study of these seeds. Raises UserError where one is negative, or there twice."""
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds is {' '.join(map(str, seeds))}, expected numbers of 0 or more, each once.")
    study = params.study(name).model_copy(update={"seeds": tuple(seeds)})
    return params.model_copy(update={"studies": {**params.studies, name: study}})
