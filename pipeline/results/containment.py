"""What the probes of a study found (stage probe), as data frames: parts, routing, directions, remedies.

Every difference is paired: the same questions, asked with the same random numbers, of the same seed's model with and
without a change. docs/containment.md has the definitions, and what each can show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.results.adapter_norms import adapter_norms
from pipeline.results.contrasts import Contrast, Runs, contrast
from pipeline.results.halves import Half, halves
from pipeline.results.metrics import metrics
from pipeline.results.ratios import share_of_effect, spearman
from pipeline.results.statistics import NO_INTERVAL, Interval, holm, mean_test

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.results.study import Results

WHOLE, BASE = "whole", "base"
# Of blocks of layers.
NO_EXPERTS = {"routing": float("nan"), "norm": float("nan")}


@dataclass(frozen=True, eq=False)
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
    def half(self) -> dict[tuple[Any, str, str], Half]:
        """(seed, suite, prompt id) -> its half, as the probe split each seed's questions."""
        asked = self.verdicts[["seed", "suite", "prompt_id"]].drop_duplicates()
        return {
            (seed, *question): half
            for seed, own in asked.groupby("seed")
            for question, half in halves(zip(own["suite"], own["prompt_id"], strict=True)).items()
        }

    def reported(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows on questions that were asked and chose nothing: no part, and no direction."""
        keys = zip(frame["seed"], frame["suite"], frame["prompt_id"], strict=True)
        return frame[[self.half.get(key) == "report" for key in keys]]

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
        return self._weighted(self.runs, {one: 1.0, other: -1.0})

    def _weighted(self, runs: Runs, weights: Mapping[str, float]) -> pd.Series:
        """A weighted sum of rates (%) at each seed, or with one seed at each question (NaN: not known)."""
        import pandas as pd

        named = {f"{self.run}+{name}": weight for name, weight in weights.items()}
        if len(seeds := runs.seeds(f"{self.run}+{WHOLE}")) > 1:
            there = [seed for seed in seeds if all(seed in runs.seeds(name) for name in named)]
            return pd.Series({seed: sum(it * runs.value(name, seed) for name, it in named.items()) for seed in there})
        found = [it * runs.questions(name, seeds[0]) for name, it in named.items()]
        return 100 * sum(found[1:], found[0])

    @property
    def names(self) -> set[str]:
        """The parts that were switched off one by one."""
        return set(self.interventions.loc[self.interventions["kind"] == "without part", "what"])

    def beyond_others(self, part: str) -> Contrast:
        """What the part's absence takes away, less what the other experts' absence takes away on average, in points.

        Nothing is added up: effects of parts on a rate are not additive.
        """
        import pandas as pd

        others = sorted(name for name in self.names - {part} if experts_of(name) is not None)
        units = pd.concat([self.units(f"without {name}", f"without {part}") for name in others], axis=1, join="inner")
        return self._tested(units.dropna().mean(axis=1))

    def beyond_half(self, remedy: str) -> Contrast:
        """What a remedy leaves of the effect, less half of it, in points, on the questions that chose nothing.

        Above 0: more than half is left, so that what was taken out is not what all of it hangs on. Where the run has no
        effect that is resolved there is no half, and no interval.
        """
        reported = Runs(self.reported(self.held_out), self.results.definition)
        found = self._tested(self._weighted(reported, {remedy: 1.0, WHOLE: -0.5, BASE: -0.5}).dropna())
        return found if self.has_effect else replace(found, interval=NO_INTERVAL, p_value=float("nan"))

    def _tested(self, values: pd.Series) -> Contrast:
        """The mean of what `units` gives, by Student's t."""
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
                rows.append(row | (self._of_experts(name) if kind == "part" else NO_EXPERTS))
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

    def _of_experts(self, name: str, seed: int | None = None) -> dict[str, float]:
        """Routing share (%) and adapter norm of a part at a seed, or means over seeds; no share but of experts."""
        experts = experts_of(name)
        if experts is None:
            return {"routing": float("nan"), "norm": self._norm(lambda frame: frame[frame["expert"].isna()], seed)}
        held_out = self.routing[self.routing["suite"].isin(self.results.study.held_out)]
        if seed is not None:
            held_out = held_out[held_out["seed"] == seed]
        shares = [sum(load[expert] for expert in experts) for load in held_out["tuned_load"]]
        chosen = set(experts)
        return {
            "routing": 100 * sum(shares) / len(shares),
            "norm": self._norm(lambda frame: frame[frame["expert"].isin(chosen)], seed),
        }

    def _norm(self, some: Any, seed: int | None) -> float:
        frames = [frame for own, frame in self.adapters.items() if seed in (None, own)]
        return sum(float((some(frame)["norm"] ** 2).sum() ** 0.5) for frame in frames) / len(frames)

    @cached_property
    def adapters(self) -> dict[int, pd.DataFrame]:
        """Seed -> norms of its adapter."""
        folder = self.results.adapter(self.run).parent
        return {seed: adapter_norms(folder / f"seed-{seed}") for seed in self.results.study.seeds}

    def summary(self) -> dict[str, Any]:
        """The run in one row: its effect, how the parts add up, and whether norm or routing rank the experts alike."""
        row: dict[str, Any] = {"run": self.run, "effect": self.effect.value}
        row |= {"effect_low": self.effect.interval.low, "effect_high": self.effect.interval.high}
        own = self.of_kind("part")
        for key in ("share_without", "share_alone"):
            row[f"sum_{key}"] = float(own[key].sum()) if len(own) and self.has_effect else float("nan")
        experts = own[own["routing"].notna()] if len(own) else own
        row["experts"] = len(experts)
        for key, (rho, p) in self._ranked(list(experts["part"]) if len(experts) > 2 else []).items():
            row |= {f"rho_{key}": rho, f"rho_{key}_p": p}
        return row

    def _ranked(self, parts: list[str]) -> dict[str, tuple[float, float]]:
        """Spearman's rho of the experts' drop with norm and routing, within a seed; its mean over seeds, and p by t.

        With one seed p is that of permuted experts. A mean of ranks over seeds, and not ranks of means: toy bases of
        different seeds are different networks, whose experts have nothing but a number in common.
        """
        found: dict[str, list[tuple[float, float]]] = {"norm": [], "routing": []}
        for seed in self.runs.seeds(f"{self.run}+{WHOLE}") if parts else ():
            drops = [self.runs.gap((f"{self.run}+{WHOLE}", f"{self.run}+without {name}"), seed) for name in parts]
            for key in found:
                found[key].append(spearman([self._of_experts(name, seed)[key] for name in parts], drops))
        ranked = {}
        for key, values in found.items():
            known = [value for value in values if value[0] == value[0]]
            if len(known) < 2:
                ranked[key] = known[0] if known else (float("nan"), float("nan"))
            else:
                it = mean_test([rho for rho, _ in known])
                ranked[key] = it.mean, it.p_value
        return ranked

    @property
    def base(self) -> str:
        """The base that the run starts from."""
        return self.results.params.base_of(self.run)

    def doses(self) -> pd.DataFrame:
        """A row a direction, strength and seed: misaligned (%) and coherent answers (%) of the base with it added.

        On the half of the questions that no direction was taken from.
        """
        added = self.interventions[self.interventions["kind"] == "add"]
        own = self.reported(self.held_out[self.held_out["intervention"].isin(added["name"])])
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
