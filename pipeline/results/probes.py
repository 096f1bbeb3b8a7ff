"""The probes of a study as stage probe left them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.files import read_jsonl
from pipeline.common.rows import read_verdicts
from pipeline.results.containment import Probe
from pipeline.results.metrics import verdict_frame

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.params.schema import Params
    from pipeline.results.study import Results

KINDS = ("interventions", "routing", "directions")


def read_probes(results: Results, folder: Path) -> list[Probe]:
    """The probes of a study's runs, in the order of params.yaml; none where it names none.

    Probes that another judge scored (answers were taken from a remote, and judged anew) are left out, and named.
    Raises UserError when a file is missing or damaged.
    """
    found = [_probe(results, run, folder) for run in (results.study.probing.runs if results.study.probing else ())]
    kept = [probe for probe in found if set(probe.verdicts["judge"]) == {results.study.judge}]
    for probe in found:
        if probe not in kept:
            by = ", ".join(sorted(set(probe.verdicts["judge"])))
            print(
                f"{probe.run}: its probes were scored by {by} and not by {results.study.judge}, so they are left out; "
                f"`dvc repro probe@{results.name}` makes them, with the model."
            )
    return kept


def available_probe(params: Params, study: str, run: str, folder: Path) -> Probe | None:
    """A run's probe by itself, without the study's other results; None where it was not run."""
    from pipeline.results.study import Results

    path = folder / run / "verdicts.jsonl"
    return _probe(Results(study, params, _verdicts(path), [], []), run, folder) if path.exists() else None


def _probe(results: Results, run: str, folder: Path) -> Probe:
    import pandas as pd

    frame = _verdicts(folder / run / "verdicts.jsonl")
    tables = {name: pd.DataFrame(list(read_jsonl(folder / run / f"{name}.jsonl"))) for name in KINDS}
    return Probe(run, results, frame, folder=folder / run, **tables)


def _verdicts(path: Path) -> pd.DataFrame:
    frame = verdict_frame(read_verdicts(path))
    frame["intervention"] = frame["run"].str.partition("+")[2]
    return frame
