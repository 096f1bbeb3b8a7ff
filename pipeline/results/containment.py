"""What the probes of a study found (stage probe), as data frames: parts, routing, directions, remedies.

Every difference is paired: the same questions, asked with the same random numbers, of the same seed's model with and
without a change. docs/containment.md has the definitions, and what each can show.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.files import read_jsonl
from pipeline.common.rows import read_verdicts
from pipeline.results.adapter_norms import adapter_norms
from pipeline.results.contrasts import Contrast, Runs, contrast
from pipeline.results.halves import halves
from pipeline.results.metrics import metrics, verdict_frame
from pipeline.results.ratios import share_of_effect, spearman
from pipeline.results.statistics import Interval, holm, mean_test

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.params.schema import Params
    from pipeline.results.study import Results

WHOLE, BASE = "whole", "base"
KINDS = ("interventions", "routing", "directions")
REMEDIES = ("whole", "base", "scale", "found", "ablate")


@dataclass(frozen=True)
class Probe:
    """One probed run: its verdicts under every intervention, and the other rows of its folder."""

    run: str
    results: Results
    verdicts: pd.DataFrame
    interventions: pd.DataFrame
    routing: pd.DataFrame
    directions: pd.DataFrame
    folder: Path

    @cached_property
    def held_out(self) -> pd.DataFrame:
        """Verdicts on the held-out suites."""
        return self.verdicts[self.verdicts["suite"].isin(self.results.study.held_out)]

    @cached_property
    def runs(self) -> Runs:
        """Held-out misalignment under every intervention at every seed."""
        return Runs(self.held_out, self.results.definition)

    def gap(self, one: str, other: str) -> Contrast:
        """Held-out misalignment under one intervention less that under another, in points, paired over seeds."""
        return contrast(self.runs, [(f"{self.run}+{one}", f"{self.run}+{other}")])

    @cached_property
    def effect(self) -> Contrast:
        """The fine-tuned model less its base."""
        return self.gap(WHOLE, BASE)

    @property
    def has_effect(self) -> bool:
        """Whether there is anything to divide: the effect's interval lies above 0."""
        return self.effect.interval.low > 0

    def units(self, one: str, other: str) -> pd.Series:
        """What a ratio is over: the difference at each seed, or with one seed that of each question both answered."""
        import pandas as pd

        names = [f"{self.run}+{name}" for name in (one, other)]
        if len(seeds := self.runs.seeds(names[0])) > 1:
            return pd.Series({seed: self.runs.gap((names[0], names[1]), seed) for seed in seeds})
        values = [self.runs.questions(name, seeds[0]) for name in names]
        return 100 * (values[0] - values[1])

    @property
    def names(self) -> set[str]:
        """The parts that were switched off one by one."""
        return set(self.interventions.loc[self.interventions["kind"] == "without part", "what"])

    def beyond_share(self, part: str, share: float) -> Contrast:
        """What the part's absence takes away less `share` of the effect, in points: above 0 where it carries more."""
        import pandas as pd

        both = pd.concat([self.units(WHOLE, f"without {part}"), self.units(WHOLE, BASE)], axis=1, join="inner").dropna()
        values = both[0] - share * both[1]
        found = mean_test(values)
        unit = "seeds" if len(self.runs.seeds(f"{self.run}+{WHOLE}")) > 1 else "questions"
        shown = tuple(values) if unit == "seeds" else (found.mean,)
        labels = tuple(map(str, values.index)) if unit == "seeds" else ("",)
        return Contrast(unit, found.mean, Interval(found.low, found.high), found.p_value, shown, labels)

    @cached_property
    def parts(self) -> pd.DataFrame:
        """A row a part (or block of layers): what its absence takes away, what it brings alone, and as shares.

        drop, rise: points, with 95 % intervals, p after Holm over the run's parts of a kind. share: of the effect, by
        Fieller's interval; empty where the run has no effect. routing, norm: of an expert part, the share of the
        tokens' choices that it gets (%), and the Frobenius norm of its adapter.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for kind in ("part", "layers"):
            without = self.interventions[self.interventions["kind"] == f"without {kind}"]
            for name in without["what"].unique():
                drop, rise = self.gap(WHOLE, f"without {name}"), self.gap(f"only {name}", BASE)
                row: dict[str, Any] = {"run": self.run, "kind": kind, "part": name}
                for key, it, pair in (
                    ("drop", drop, (WHOLE, f"without {name}")),
                    ("rise", rise, (f"only {name}", BASE)),
                ):
                    row |= {key: it.value, f"{key}_low": it.interval.low, f"{key}_high": it.interval.high}
                    row |= {f"{key}_p": it.p_value, "unit": it.unit}
                    ratio = self._share(pair)
                    label = "share_without" if key == "drop" else "share_alone"
                    row |= {label: ratio[0], f"{label}_low": ratio[1].low, f"{label}_high": ratio[1].high}
                if kind == "part":
                    row |= self._of_experts(name)
                rows.append(row)
        frame = pd.DataFrame(rows)
        for key in ("drop", "rise") if rows else ():
            for _, own in frame.groupby("kind"):
                frame.loc[own.index, f"{key}_p_holm"] = holm(list(own[f"{key}_p"]))
        return frame

    def of_kind(self, kind: str) -> pd.DataFrame:
        """The rows of `parts` of a kind; none where the adapter has one part alone."""
        return self.parts[self.parts["kind"] == kind] if len(self.parts) else self.parts

    def _share(self, pair: tuple[str, str]) -> tuple[float, Any]:
        import pandas as pd

        both = pd.concat([self.units(*pair), self.units(WHOLE, BASE)], axis=1, join="inner").dropna()
        return share_of_effect(both[0], both[1], resolved=self.has_effect)

    def _of_experts(self, name: str) -> dict[str, float]:
        """Routing share (%) and adapter norm of an expert part, mean over seeds; nothing for other parts."""
        experts = experts_of(name)
        if experts is None:
            return {"routing": float("nan"), "norm": self._norm(lambda frame: frame[frame["expert"].isna()])}
        held_out = self.routing[self.routing["suite"].isin(self.results.study.held_out)]
        shares = [sum(load[expert] for expert in experts) for load in held_out["tuned_load"]]
        chosen = set(experts)
        return {
            "routing": 100 * sum(shares) / len(shares),
            "norm": self._norm(lambda frame: frame[frame["expert"].isin(chosen)]),
        }

    def _norm(self, some: Any) -> float:
        found = []
        for frame in self.adapters:
            found.append(float((some(frame)["norm"] ** 2).sum() ** 0.5))
        return sum(found) / len(found)

    @cached_property
    def adapters(self) -> list[pd.DataFrame]:
        """Norms of the adapter of every seed."""
        folder = self.results.adapter(self.run).parent
        return [adapter_norms(folder / f"seed-{seed}") for seed in self.results.study.seeds]

    def summary(self) -> dict[str, Any]:
        """The run in one row: its effect, how the parts add up, and whether norm or routing rank the experts alike."""
        row: dict[str, Any] = {"run": self.run, "effect": self.effect.value}
        row |= {"effect_low": self.effect.interval.low, "effect_high": self.effect.interval.high}
        own = self.of_kind("part")
        for key in ("share_without", "share_alone"):
            row[f"sum_{key}"] = float(own[key].sum()) if len(own) and self.has_effect else float("nan")
        experts = own[own["routing"].notna()] if len(own) else own
        row["experts"] = len(experts)
        for key in ("norm", "routing"):
            rho, p = spearman(experts[key], experts["drop"]) if len(experts) > 2 else (float("nan"), float("nan"))
            row |= {f"rho_{key}": rho, f"rho_{key}_p": p}
        return row

    def remedies(self) -> pd.DataFrame:
        """A row a remedy, on the half of the questions that chose none: what is left, and what it costs.

        misaligned (%) of held-out and in-domain answers, coherence, refused (%); means over seeds with 95 % intervals
        over seeds (empty with one seed).
        """
        import pandas as pd

        chosen = self.interventions[self.interventions["kind"].isin(REMEDIES)]
        frame = self.verdicts[self.verdicts["intervention"].isin(chosen["name"])]
        named = dict(zip(chosen["name"], chosen["kind"], strict=True))
        asked = set(zip(frame["suite"], frame["prompt_id"], strict=True))
        other = self.results.study.probing and self.results.study.probing.realigned.get(self.run)
        if other:
            rows = self.results.verdicts[self.results.verdicts["run"] == other]
            same = [key in asked for key in zip(rows["suite"], rows["prompt_id"], strict=True)]
            frame = pd.concat([frame, rows[same].assign(intervention="trained on good data")], ignore_index=True)
            named["trained on good data"] = "realigned"
        half = halves(sorted(asked))
        frame = frame[[half[key] == "report" for key in zip(frame["suite"], frame["prompt_id"], strict=True)]]
        table = pd.DataFrame(
            {
                "run": self.run,
                "remedy": list(named),
                "kind": list(named.values()),
                "what": [self._what(name) for name in named],
            }
        )
        for key, column in self._costs(frame.assign(run=frame["intervention"])).items():
            table[key] = table["remedy"].map(column)
        return table

    def _what(self, name: str) -> str:
        """What an intervention is about, which the search chooses for every seed by itself."""
        own = self.interventions[self.interventions["name"] == name]
        return "; ".join(dict.fromkeys(own["what"]))

    def _costs(self, frame: pd.DataFrame) -> dict[str, dict[str, float]]:
        """Column -> remedy -> value, of rows whose `run` is the remedy."""
        study = self.results.study
        assert study.probing is not None
        columns: dict[str, dict[str, float]] = {}
        for key, suites, value in (
            ("held_out", study.held_out, "misalignment_percent"),
            ("in_domain", study.probing.in_domain, "misalignment_percent"),
            ("coherence", study.held_out, "mean_coherence"),
            ("refused", (study.refused,), "refusal_percent"),
        ):
            some = frame[frame["suite"].isin(suites)]
            if some.empty:
                continue
            for remedy, own in metrics(some, self.results.definition, ["run", "seed"]).groupby("run"):
                it = mean_test(own[value].dropna())
                for end, bound in (("", it.mean), ("_low", max(it.low, 0.0)), ("_high", min(it.high, 100.0))):
                    columns.setdefault(f"{key}{end}", {})[str(remedy)] = bound
        return columns

    @property
    def base(self) -> str:
        """The base that the run starts from."""
        return self.results.params.base_of(self.run)

    def doses(self) -> pd.DataFrame:
        """A row a direction, strength and seed: misaligned (%) and coherent answers (%) of the base with it added."""
        added = self.interventions[self.interventions["kind"] == "add"]
        own = self.held_out[self.held_out["intervention"].isin(added["name"])]
        found = metrics(own, self.results.definition, ["run", "seed"])
        found["intervention"] = found["run"].str.partition("+")[2]
        found["coherent_percent"] = 100 * found["coherent"] / found["rows"]
        columns = ["intervention", "seed", "misalignment_percent", "mean_coherence", "coherent_percent", "counted"]
        names = added[["name", "what", "strength"]].drop_duplicates().rename(columns={"name": "intervention"})
        frame = found[columns].merge(names, on="intervention")
        return frame.assign(run=self.run).sort_values(["what", "strength", "seed"], ignore_index=True)


def experts_of(part: str) -> list[int] | None:
    """The experts of a part by its name (`expert 3`, `experts 8-15`), None of a part that is none."""
    what, _, numbers = part.partition(" ")
    if what not in ("expert", "experts"):
        return None
    first, _, last = numbers.partition("-")
    return list(range(int(first), int(last or first) + 1))


def read_probes(results: Results, folder: Path) -> list[Probe]:
    """The probes of a study's runs, in the order of params.yaml; none where it names none.

    Raises UserError when a file is missing or damaged.
    """
    return [_probe(results, run, folder) for run in (results.study.probing.runs if results.study.probing else ())]


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
