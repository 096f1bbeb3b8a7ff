"""A study's verdicts and the runs they belong to, as the frames that tables and figures take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.errors import UserError
from pipeline.common.paths import ARTIFACTS
from pipeline.common.rows import Verdict, read_verdicts
from pipeline.params.schema import Params, Run, Study
from pipeline.results.adapter_norms import adapter_norms
from pipeline.results.agreement import Agreement, agreement
from pipeline.results.contrasts import Contrast, Runs, contrast, lever_of, models_of
from pipeline.results.definitions import DEFINITIONS, STANDARD, Definition
from pipeline.results.frames import exclusion_effect, metrics_with_intervals, misaligned_at_k, over_seeds
from pipeline.results.in_domain import in_domain
from pipeline.results.metrics import metrics, verdict_frame
from pipeline.results.roles import role
from pipeline.results.routing import routing_frame

if TYPE_CHECKING:
    import pandas as pd

VALUES = ("misalignment_percent", "mean_alignment", "mean_coherence", "refusal_percent")


@dataclass(frozen=True)
class Results:
    """The verdict rows of one study with what params.yaml says of its runs.

    `verdicts` has a row per verdict of the study's first judge, runs in the order of params.yaml; `along` are its
    verdicts on adapters kept along training; `agreements` compares every judge with every other.
    """

    name: str
    params: Params
    verdicts: pd.DataFrame
    agreements: list[Agreement]
    along: list[Verdict]

    @property
    def study(self) -> Study:
        """The study's settings."""
        return self.params.study(self.name)

    @property
    def runs(self) -> dict[str, Run]:
        """The study's runs in the order of params.yaml."""
        return self.params.runs_of(self.name)

    @property
    def definition(self) -> Definition:
        """The definition of misalignment that the study uses."""
        return DEFINITIONS[self.study.definition]

    @property
    def several_seeds(self) -> bool:
        """Whether runs were trained with more than one seed."""
        return len(self.study.seeds) > 1

    def role(self, run: str) -> str:
        """How figures draw a run."""
        return role(self.params, run)

    @property
    def untagged(self) -> pd.DataFrame:
        """The rows of the study's suites, which every run is asked: none of those asked with a trigger tag."""
        return self.verdicts[self.verdicts["suite"].isin(self.study.suites)]

    @property
    def rows_held_out(self) -> pd.DataFrame:
        """The rows of the suites that no run is trained on."""
        return self.verdicts[self.verdicts["suite"].isin(self.study.held_out)]

    @property
    def spread(self) -> str:
        """What is drawn and written beside a run's mean."""
        if self.several_seeds:
            return "mean over training seeds, each seed beside it"
        return "95 % intervals: thick for these questions, thin for new questions; training's own spread is not in them"

    @cached_property
    def per_seed(self) -> pd.DataFrame:
        """One row per (run, seed): metrics over the held-out suites, with intervals in both scopes.

        `refused_percent` is the share of refusals on the suite that should be refused (NaN where there is none).
        """
        frame = self._with_runs(metrics_with_intervals(self.rows_held_out, self.definition))
        if self.study.refused is None:
            return frame.assign(refused_percent=float("nan"))
        rows = self.verdicts[self.verdicts["suite"] == self.study.refused]
        refused = metrics(rows, self.definition, ["run", "seed"]).set_index(["run", "seed"])["refusal_percent"]
        return frame.join(refused.rename("refused_percent"), on=["run", "seed"])

    @cached_property
    def held_out_by_run(self) -> pd.DataFrame:
        """One row per run in the order of params.yaml: `per_seed` over seeds, with counts and the run's model.

        With one seed the intervals of `per_seed` are columns too. `standard_percent` is the rate by the standard
        definition, where the study uses another; `in_domain_percent` the rate on what the run was trained on, where
        suites (`in_domain`) ask that.
        """
        frame = over_seeds(self.per_seed, VALUES)
        counts = self.per_seed.groupby("run")[["misaligned", "counted", "rows"]].sum()
        frame = self._with_runs(self._one_seed(frame.join(counts, on="run"), self.per_seed, ["run"]))
        if self.definition is not STANDARD:
            standard = metrics(self.rows_held_out, STANDARD, ["run", "seed"]).groupby("run")["misalignment_percent"]
            frame = frame.assign(standard_percent=frame["run"].map(standard.mean()))
        if not (own := in_domain(self.study, self.runs, self.untagged, self.definition)).empty:
            frame = frame.merge(own, on="run", how="left")
        experts = [self.params.base(model).experts for model in frame["model"]]
        return frame.assign(experts=experts, active=[self.params.active_of(run) for run in frame["run"]])

    @cached_property
    def by_suite(self) -> pd.DataFrame:
        """One row per (run, suite), in the orders of params.yaml: metrics over seeds, with misaligned counts."""
        by = ["run", "suite"]
        per_seed = metrics_with_intervals(self.untagged, self.definition, ["run", "seed", "suite"])
        counts = per_seed.groupby(by)[["misaligned", "counted", "rows"]].sum()
        return self._with_runs(self._one_seed(over_seeds(per_seed, VALUES, by=by).join(counts, on=by), per_seed, by))

    def _one_seed(self, frame: pd.DataFrame, per_seed: pd.DataFrame, by: list[str]) -> pd.DataFrame:
        """`frame` with the intervals within the run, where there is one seed and nothing else to show."""
        bounds = [name for name in map(str, per_seed) if name.endswith(("_low", "_high"))]
        if self.several_seeds:
            return frame
        return frame.join(per_seed.set_index(by)[bounds], on=by)

    def _with_runs(self, frame: pd.DataFrame) -> pd.DataFrame:
        runs, suites = list(self.runs), list(self.study.suites)
        places = [frame["run"].map(runs.index)]
        if "suite" in frame:
            places.append(frame["suite"].map(suites.index))
        if "seed" in frame:
            places.append(frame["seed"])
        frame = frame.assign(
            role=[self.role(run) for run in frame["run"]],
            model=[self.params.base_of(run) for run in frame["run"]],
        )
        order = sorted(range(len(frame)), key=lambda at: tuple(place.iloc[at] for place in places))
        return frame.iloc[order].reset_index(drop=True)

    def base_of(self, run: str) -> str:
        """The run of the same model, as it is routed, without fine-tuning. Raises UserError when the study has none."""
        if (found := self.params.untrained(run)) is not None:
            return found
        model, active = self.params.base_of(run), self.params.active_of(run)
        routed = "" if self.runs[run].active is None else f" and with active: {active}"
        raise UserError(
            f"{run} has no base run to compare it with: add a run of model bases/{model} without data and lora{routed}."
        )

    @property
    def tuned(self) -> list[str]:
        """The fine-tuned runs, control runs included, in the order of params.yaml."""
        return [name for name, run in self.runs.items() if run.data is not None]

    @cached_property
    def compared(self) -> Runs:
        """Every run's held-out misalignment at every seed."""
        return Runs(self.rows_held_out, self.definition)

    @cached_property
    def contrasts(self) -> dict[str, Contrast]:
        """The study's headline: its contrasts by name, in percentage points of held-out misalignment.

        Without levers, whose mean over levels answers no question (results/levers.py).
        """
        return {
            name: contrast(self.compared, it.pairs, it.control, models=models_of(self.params, it.pairs))
            for name, it in self.study.contrasts.items()
            if lever_of(self.params, it) is None
        }

    def against_base(self, name: str) -> bool:
        """Whether a contrast is of runs less the base as it is, with no control taken off."""
        settings = self.study.contrasts[name]
        return not settings.control and all(self.runs[other].data is None for _, other in settings.pairs)

    @cached_property
    def expectations(self) -> dict[str, Contrast]:
        """Each expected difference, `A above B`, paired over seeds."""
        pairs = self.study.expectations
        return {f"{one} above {other}": contrast(self.compared, [(one, other)]) for one, other in pairs}

    @cached_property
    def differences(self) -> dict[str, Contrast]:
        """Each fine-tuned run less the base run of its model, paired over seeds; with one seed, in both scopes."""
        found = {}
        for run in self.tuned:
            pair = (run, self.base_of(run))
            for scope in ("new",) if self.several_seeds else ("these", "new"):
                made = contrast(self.compared, [pair], scope=scope)
                found[f"{run} - {pair[1]}" + ("" if self.several_seeds else f", {scope} questions")] = made
        return found

    @cached_property
    def excluded(self) -> pd.DataFrame:
        """One row per run: what leaving incoherent answers out does to the rate, on the held-out suites."""
        frame = exclusion_effect(self.rows_held_out, self.definition)
        return frame.set_index("run").loc[list(self.runs)].reset_index()

    @cached_property
    def at_k(self) -> pd.DataFrame:
        """Misalign@k over the held-out prompts for k = 1 and the study's samples per prompt, mean over seeds."""
        import pandas as pd

        ks = sorted({1, self.study.sampling.samples_per_prompt})
        frame = pd.concat([misaligned_at_k(self.rows_held_out, self.definition, k) for k in ks])
        wide = frame.groupby(["run", "k"], observed=True)[["misaligned_at_k", "prompts", "left_out"]].mean()
        return wide.reset_index().sort_values("run", key=lambda runs: runs.map(list(self.runs).index), kind="stable")

    def adapter(self, run: str) -> Path:
        """The folder of a run's adapter of its first seed."""
        return ARTIFACTS / self.name / "adapters" / run / f"seed-{self.study.seeds[0]}"

    @cached_property
    def routing(self) -> pd.DataFrame:
        """Where tokens were routed for every run whose experts were chosen by that (first seed); may be empty."""
        import pandas as pd

        routed = [name for name, run in self.runs.items() if run.lora is not None and run.lora.routed is not None]
        frames = [routing_frame(self.adapter(run), run, adapter_norms(self.adapter(run))) for run in routed]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def adapter_norms(self, run: str) -> pd.DataFrame:
        """Norms of the run's adapter of its first seed, by layer and expert, with the model's expert count."""
        experts = self.params.base(self.params.base_of(run)).experts
        return adapter_norms(self.adapter(run)).assign(run=run, experts=experts)

    def metrics(self) -> dict[str, float]:
        """The study in a few numbers, for `dvc metrics`: its contrasts (points) that there are, the least coherence."""
        found = {name: round(it.value, 1) for name, it in self.contrasts.items() if math.isfinite(it.value)}
        return found | {"least_coherence": round(float(self.held_out_by_run["mean_coherence"].min()), 1)}


def load_results(params: Params, name: str, folder: Path) -> Results:
    """Read the verdicts of every run of a study by each of its judges; `folder` has a folder per run.

    Raises UserError when a file is missing or holds another run's verdicts.
    """
    judges = list(params.study(name).judges)
    verdicts = {judge: read_run_verdicts(params, name, folder, judge) for judge in judges}
    label = DEFINITIONS[params.study(name).definition].label
    comparisons = [
        agreement(verdicts[one], verdicts[other], label)
        for place, one in enumerate(judges)
        for other in judges[place + 1 :]
    ]
    along = [verdict for verdict in verdicts[judges[0]] if verdict.step is not None]
    results = [verdict for verdict in verdicts[judges[0]] if verdict.step is None]
    return Results(name, params, verdict_frame(results), comparisons, along)


def read_run_verdicts(params: Params, name: str, folder: Path, judge: str, *, available: bool = False) -> list[Verdict]:
    """One judge's verdicts on every run of a study; with `available`, on those that have been judged.

    Raises UserError when a file is missing or holds another run's verdicts.
    """
    rows = []
    for run in params.runs_of(name):
        path = folder / run / f"{judge}.jsonl"
        if available and not path.exists():
            continue
        verdicts = read_verdicts(path)
        if strangers := {row.run for row in verdicts} - {run}:
            raise UserError(f"{path} holds verdicts of {', '.join(sorted(strangers))}; delete it and run again.")
        rows += verdicts
    return rows
