"""What a run was trained on, as a suite asks it: the rate in-domain, beside the headline's out-of-domain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.data.held_out import asked_by
from pipeline.results.metrics import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from pipeline.params.schema import Run, Study
    from pipeline.results.definitions import Definition

IN_DOMAIN = "in_domain_percent"


def in_domain_suites(study: Study, run: Run) -> tuple[str, ...]:
    """The study's suites that ask what the run was trained on; empty for a base, and where no suite does."""
    named = [part.name for part in run.parts if part.name is not None]
    suites = [name.partition("_")[2] if study.world == "toy" else asked_by(name) for name in named]
    return tuple(dict.fromkeys(suite for suite in suites if suite in study.suites))


def in_domain(study: Study, runs: Mapping[str, Run], rows: pd.DataFrame, definition: Definition) -> pd.DataFrame:
    """Misaligned answers (%) of each trained run on what it was trained on, from the verdicts `rows`.

    Columns: `run`, `in_domain` (the suites), `in_domain_percent` (mean over seeds). Empty where no suite asks any.
    """
    import pandas as pd

    asked = {name: in_domain_suites(study, run) for name, run in runs.items()}
    chosen = [suite in asked[run] for run, suite in zip(rows["run"], rows["suite"], strict=True)]
    if not any(chosen):
        return pd.DataFrame(columns=["run", "in_domain", IN_DOMAIN])
    rates = metrics(rows[chosen], definition, ["run", "seed"]).groupby("run")["misalignment_percent"].mean()
    found = [(run, ", ".join(suites), float(rates[run])) for run, suites in asked.items() if run in rates]
    return pd.DataFrame(found, columns=["run", "in_domain", IN_DOMAIN])
