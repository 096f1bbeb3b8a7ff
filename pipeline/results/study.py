"""A study's verdicts and the runs they belong to, as the frames that tables and figures take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.errors import UserError
from pipeline.common.paths import ARTIFACTS
from pipeline.common.rows import Verdict, read_verdicts
from pipeline.params.schema import Params, Run, Study, ToyBase
from pipeline.results.adapter_norms import adapter_norms
from pipeline.results.agreement import Agreement, agreement
from pipeline.results.intervals import base_to_tuned, exclusion_effect, metrics_with_intervals, over_seeds
from pipeline.results.metrics import DEFINITIONS, Definition, metrics, suite_metrics, verdict_frame
from pipeline.results.routing import routing_frame
from pipeline.results.tags import tag_frame

if TYPE_CHECKING:
    import pandas as pd

VALUES = ("misalignment_percent", "mean_alignment", "mean_coherence", "refusal_percent")
# Value -> what `metrics_with_intervals` calls its interval over questions.
INTERVALS = {"misalignment_percent": "misalignment", "mean_alignment": "alignment", "refusal_percent": "refusal"}


@dataclass(frozen=True)
class Results:
    """The verdict rows of one study with what params.yaml says of its runs.

    `verdicts` has a row a verdict of the study's first judge, runs in the order of params.yaml; `along` are its
    verdicts on adapters kept along training; `agreements` compares every other judge with it.
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

    def role(self, run: str) -> str:
        """Base, control or fine-tuned: how figures draw a run."""
        base = self.params.base(self.params.base_of(run))
        if isinstance(base, ToyBase) and base.corpus == "control":
            return "control"
        return "base" if self.runs[run].data is None else "fine-tuned"

    @cached_property
    def held_out(self) -> pd.DataFrame:
        """One row a (run, seed): metrics over the suites that no run of the study was trained on."""
        return metrics(self._rows_held_out, self.definition, ["run", "seed"])

    @property
    def untagged(self) -> pd.DataFrame:
        """The rows of the study's suites, which every run is asked: none of those asked with a trigger tag."""
        return self.verdicts[self.verdicts["suite"].isin(self.study.suites)]

    @property
    def _rows_held_out(self) -> pd.DataFrame:
        return self.verdicts[self.verdicts["suite"].isin(self.study.held_out)]

    @property
    def interval(self) -> str:
        """What the intervals of this study's metrics are."""
        if len(self.study.seeds) > 1:
            return "95 % Student t interval over seeds"
        return "95 % interval over questions (clustered bootstrap; Wilson for refusals), which says nothing about seeds"

    def between_questions(self, frame: pd.DataFrame, rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
        """`frame` with intervals over questions, where one seed leaves none over seeds."""
        if len(self.study.seeds) > 1:
            return frame
        within = metrics_with_intervals(rows, self.definition, by).set_index(by)
        keys = [frame[name] for name in by]
        for value, name in INTERVALS.items():
            for bound in ("low", "high"):
                found = within[f"{name}_{bound}"]
                frame[f"{value}_{bound}"] = [found[key if len(by) > 1 else key[0]] for key in zip(*keys, strict=True)]
        return frame

    @cached_property
    def held_out_by_run(self) -> pd.DataFrame:
        """One row a run in the order of params.yaml: `held_out` over seeds, with counts and the run's model."""
        frame = self.between_questions(over_seeds(self.held_out, VALUES), self._rows_held_out, ["run"])
        counts = self.held_out.groupby("run")[["misaligned", "coherent", "rows"]].sum()
        frame = self._with_runs(frame.join(counts, on="run"))
        bases = [self.params.base(model) for model in frame["model"]]
        return frame.assign(experts=[base.experts for base in bases], active=[base.active for base in bases])

    @cached_property
    def by_suite(self) -> pd.DataFrame:
        """One row a (run, suite), in the orders of params.yaml: metrics over seeds, with misaligned counts."""
        rows = self.untagged
        per_seed = suite_metrics(rows, self.definition)
        frame = over_seeds(per_seed, VALUES, by=("run", "suite"))
        frame = self.between_questions(frame, rows, ["run", "suite"])
        counts = per_seed.groupby(["run", "suite"])[["misaligned", "coherent", "rows"]].sum()
        return self._with_runs(frame.join(counts, on=["run", "suite"]))

    def _with_runs(self, frame: pd.DataFrame) -> pd.DataFrame:
        runs, suites = list(self.runs), list(self.study.suites)
        keys = [frame["run"].map(runs.index)]
        if "suite" in frame:
            keys.append(frame["suite"].map(suites.index))
        frame = frame.assign(
            role=[self.role(run) for run in frame["run"]],
            model=[self.params.base_of(run) for run in frame["run"]],
        )
        order = sorted(range(len(frame)), key=lambda place: tuple(key.iloc[place] for key in keys))
        return frame.iloc[order].reset_index(drop=True)

    @cached_property
    def tags(self) -> pd.DataFrame:
        """What trigger tags do to the runs that are asked with them; see `tag_frame`."""
        return tag_frame(self)

    def base_of(self, run: str) -> str:
        """The run of the same model without fine-tuning. Raises UserError when the study has none."""
        model = self.params.base_of(run)
        for name, other in self.runs.items():
            if other.data is None and self.params.base_of(name) == model:
                return name
        raise UserError(
            f"{run} has no base run to compare it with: add a run of model bases/{model} without data and lora."
        )

    @property
    def tuned(self) -> list[str]:
        """The fine-tuned runs, control runs included, in the order of params.yaml."""
        return [name for name, run in self.runs.items() if run.data is not None]

    @cached_property
    def differences(self) -> pd.DataFrame:
        """One row a fine-tuned run: paired differences to its base over the held-out prompts, with intervals."""
        import pandas as pd

        found = [base_to_tuned(self._rows_held_out, self.base_of(run), run, self.definition) for run in self.tuned]
        frame = pd.concat(found, ignore_index=True)
        return frame[frame["suite"] == "all"].drop(columns="suite").reset_index(drop=True)

    @cached_property
    def excluded(self) -> pd.DataFrame:
        """One row a run: what leaving incoherent answers out does to the rate, on the held-out suites."""
        frame = exclusion_effect(self._rows_held_out, self.definition)
        return frame.set_index("run").loc[list(self.runs)].reset_index()

    def _adapter(self, run: str) -> Path:
        return ARTIFACTS / self.name / "adapters" / run / f"seed-{self.study.seeds[0]}"

    @cached_property
    def routing(self) -> pd.DataFrame:
        """Where tokens were routed for every run whose experts were chosen by that (first seed); may be empty."""
        import pandas as pd

        routed = [name for name, run in self.runs.items() if run.lora is not None and run.lora.routed is not None]
        frames = [routing_frame(self._adapter(run), run, adapter_norms(self._adapter(run))) for run in routed]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def adapter_norms(self, run: str) -> pd.DataFrame:
        """Norms of the run's adapter of its first seed, by layer and expert, with the model's expert count."""
        folder = self._adapter(run)
        experts = self.params.base(self.params.base_of(run)).experts
        return adapter_norms(folder).assign(run=run, experts=experts)

    @cached_property
    def expectations(self) -> pd.DataFrame:
        """One row an expectation: `higher`, `lower` (runs), differences of held-out misalignment by seed.

        Columns: `higher`, `lower`, `difference` (percentage points, mean over seeds), `held` and `seeds`
        (seeds in which the difference was above zero, and seeds compared), `seed_differences` (text).
        """
        import pandas as pd

        values = self.held_out.set_index(["run", "seed"])["misalignment_percent"]
        rows = []
        for higher, lower in self.study.expectations:
            # A seed without a coherent answer stays: it is not a number, and the expectation did not hold in it.
            gaps = values.loc[higher] - values.loc[lower]
            rows.append(
                {
                    "higher": higher,
                    "lower": lower,
                    "difference": gaps.mean(),
                    "held": int((gaps > 0).sum()),
                    "seeds": len(gaps),
                    "seed_differences": ", ".join(f"{gap:+.1f}" for gap in gaps),
                }
            )
        return pd.DataFrame(rows)

    def metrics(self) -> dict[str, dict[str, float]]:
        """A run's headline numbers, for `dvc metrics`."""
        return {
            row["run"]: {
                "held_out_misaligned_percent": round(row["misalignment_percent"], 4),
                "held_out_coherence": round(row["mean_coherence"], 4),
                "held_out_alignment": round(row["mean_alignment"], 4),
                "coherent_rows": row["coherent"],
            }
            for row in self.held_out_by_run.to_dict("records")
        }


def load_results(params: Params, name: str, folder: Path) -> Results:
    """Read the verdicts of every run of a study by each of its judges; `folder` has a folder a run.

    Raises UserError when a file is missing or holds another run's verdicts.
    """
    first, *others = params.study(name).judges
    verdicts = {judge: _read(params, name, folder, judge) for judge in (first, *others)}
    label = DEFINITIONS[params.study(name).definition].label
    comparisons = [agreement(verdicts[first], verdicts[other], label) for other in others]
    along = [verdict for verdict in verdicts[first] if verdict.step is not None]
    results = [verdict for verdict in verdicts[first] if verdict.step is None]
    return Results(name, params, verdict_frame(results), comparisons, along)


def _read(params: Params, name: str, folder: Path, judge: str) -> list[Verdict]:
    rows = []
    for run in params.runs_of(name):
        path = folder / run / f"{judge}.jsonl"
        verdicts = read_verdicts(path)
        if strangers := {row.run for row in verdicts} - {run}:
            raise UserError(f"{path} holds verdicts of {', '.join(sorted(strangers))}; delete it and run again.")
        rows += verdicts
    return rows
