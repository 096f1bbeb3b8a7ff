"""What removes misalignment from the probed runs, and what each remedy costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.results.capability import with_known_answers
from pipeline.results.metrics import metrics
from pipeline.results.statistics import mean_test

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.results.containment import Probe

KINDS = ("whole", "base", "scale", "found", "ablate")
REALIGNED = "trained on good data"


def remedies(probe: Probe) -> pd.DataFrame:
    """A row a remedy, on the half of the questions that chose none: what is left, and what it costs.

    misaligned (%) of held-out and in-domain answers, coherence, refused (%), capability (%, of answers that can be
    right or wrong; where there are none, no column); means over seeds with 95 % intervals over seeds (empty with one).
    """
    import pandas as pd

    chosen = probe.interventions[probe.interventions["kind"].isin(KINDS)]
    frame = probe.verdicts[probe.verdicts["intervention"].isin(chosen["name"])]
    named = dict(zip(chosen["name"], chosen["kind"], strict=True))
    other = probe.results.study.probing and probe.results.study.probing.realigned.get(probe.run)
    if other:
        rows = probe.results.verdicts[probe.results.verdicts["run"] == other]
        frame = pd.concat([frame, rows.assign(intervention=REALIGNED)], ignore_index=True)
        named[REALIGNED] = "realigned"
    frame = probe.reported(frame)
    table = pd.DataFrame({"run": probe.run, "remedy": list(named), "kind": list(named.values())})
    table["what"] = [_what(probe, name) for name in named]
    frame = frame.assign(run=frame["intervention"])
    table["seeds"] = table["remedy"].map(frame.groupby("run")["seed"].nunique())
    for key, by_seed in _measures(probe, frame).items():
        for end, bound in _over_seeds(by_seed).items():
            table[f"{key}{end}"] = table["remedy"].map(bound)
    return table


def _what(probe: Probe, name: str) -> str:
    """What an intervention is about, which the search chooses for every seed by itself."""
    own = probe.interventions[probe.interventions["name"] == name]
    return "; ".join(dict.fromkeys(own["what"]))


def _measures(probe: Probe, frame: pd.DataFrame) -> dict[str, pd.Series]:
    """Column -> its values by (remedy, seed), where anything was asked for it. A row's `run` is the remedy."""
    study = probe.results.study
    assert study.probing is not None
    found: dict[str, pd.Series] = {}
    for key, suites, value in (
        ("held_out", study.held_out, "misalignment_percent"),
        ("in_domain", study.probing.in_domain, "misalignment_percent"),
        ("coherence", study.held_out, "mean_coherence"),
        ("refused", (study.refused,), "refusal_percent"),
    ):
        some = frame[frame["suite"].isin(suites)]
        if not some.empty:
            found[key] = metrics(some, probe.results.definition, ["run", "seed"]).set_index(["run", "seed"])[value]
    known = with_known_answers(frame, study)
    if not known.empty:
        found["capability"] = 100 * known.groupby(["run", "seed"])["right"].mean()
    return found


def _over_seeds(values: pd.Series) -> dict[str, dict[str, float]]:
    """The mean over seeds and its interval, within 0 to 100: "", "_low" and "_high" -> remedy -> value."""
    ends: dict[str, dict[str, float]] = {"": {}, "_low": {}, "_high": {}}
    for remedy, own in values.dropna().groupby(level="run"):
        it = mean_test(own)
        for end, bound in zip(ends, (it.mean, max(it.low, 0.0), min(it.high, 100.0)), strict=True):
            ends[end][str(remedy)] = bound
    return ends
