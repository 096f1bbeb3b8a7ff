"""Does a fine-tuned model still know what it knew? The share of right answers, of base and fine-tuned.

Of hub models: the questions with known answers (pipeline/data/capability.yaml), where the study asks them. All that toy
models know is what belongs to which topic: an answer to a held-out question is right if it is a whole sentence about
that topic whose three words are of its domain, be the advice good or bad (the judge's coherence is 100).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data import capability
from pipeline.results.frames import by_seed_text
from pipeline.results.intervals import Estimate, paired, rate
from pipeline.results.statistics import mean_test
from pipeline.results.tables import markdown_table, write_table

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.params.schema import Study
    from pipeline.results.study import Results

RULES = {
    "toy": "whole answers to held-out questions about the topic asked, in words of its domain, good advice or bad",
    "hub": "right answers to questions with known answers",
}
_HEADERS = {
    "accuracy_percent": "right %",
    "by_seed": "by seed",
    "correct": "right",
    "answers": "of",
    "difference": "minus base",
    "low": "difference, low",
    "high": "difference, high",
    "unit": "interval over",
}


def capability_frame(results: Results) -> pd.DataFrame:
    """One row per run, in the order of params.yaml; empty where the study asks nothing with a known answer.

    Columns: `run`, `role`, `accuracy_percent` (mean over seeds), `by_seed`, `correct` of `answers` (over all seeds),
    and `difference` to the model's base in points, with `low` and `high`: Student's t over matched seeds or, with one
    seed, over new questions (`unit`). A base has no difference.
    """
    import pandas as pd

    known = with_known_answers(results.verdicts, results.study)
    sums = known.groupby(["run", "seed", "prompt_id"])["right"].agg(["sum", "count"])
    by_seed: dict[str, dict[int, pd.DataFrame]] = {run: {} for run in results.runs}
    for _, rows in sums.groupby(level=["run", "seed"]):
        by_seed[str(rows.index[0][0])][int(rows.index[0][1])] = rows.droplevel(["run", "seed"])
    found = []
    for run, seeds in ((run, seeds) for run, seeds in by_seed.items() if seeds):
        estimates = {seed: rate(rows["sum"], rows["count"], "rows") for seed, rows in seeds.items()}
        shares = [100 * it.value for it in estimates.values()]
        correct, answers = (sum(int(rows[name].sum()) for rows in seeds.values()) for name in ("sum", "count"))
        row = {"run": run, "role": results.role(run), "accuracy_percent": sum(shares) / len(shares)}
        row |= {"by_seed": by_seed_text(shares), "correct": correct, "answers": answers}
        if results.runs[run].data is not None:
            row |= _minus_base(seeds, by_seed[results.base_of(run)])
        found.append(row)
    return pd.DataFrame(found, columns=["run", "role", *_HEADERS])


def with_known_answers(verdicts: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The rows whose answer can be right or wrong, and whether it is `right`."""
    if study.world == "toy":
        rows = verdicts[verdicts["suite"].isin(study.held_out)]
        return rows.assign(right=(rows["status"] == "scored") & (rows["coherence"] == 100))
    rows = verdicts[verdicts["suite"] == capability.SUITE]
    asked = zip(rows["question"], rows["answer"], strict=True)
    return rows.assign(right=[capability.is_right(question, answer) for question, answer in asked])


def _minus_base(tuned: dict[int, pd.DataFrame], base: dict[int, pd.DataFrame]) -> dict[str, object]:
    """A run's accuracy less its base's, in points, at matched seeds."""
    both = sorted(tuned.keys() & base.keys())

    def estimate(rows: pd.DataFrame) -> Estimate:
        return rate(rows["sum"], rows["count"], "rows")

    if len(both) > 1:
        found = mean_test([100 * (estimate(tuned[seed]).value - estimate(base[seed]).value) for seed in both])
        return {"difference": found.mean, "low": found.low, "high": found.high, "unit": "seeds"}
    one, other = tuned[both[0]], base[both[0]]
    shared = one.index.intersection(other.index)
    values = ((one["sum"] / one["count"])[shared], (other["sum"] / other["count"])[shared])
    gap = paired(estimate(one), estimate(other), values, "new")
    low, high = (100 * bound for bound in gap.interval)
    return {"difference": 100 * gap.value, "low": low, "high": high, "unit": "new questions"}


def capability_table(frame: pd.DataFrame, stem: Path, results: Results) -> list[Path]:
    """`capability_frame` as csv, Markdown and LaTeX."""
    caption = f"Capability (%): {RULES[results.study.world]}; mean over seeds, less the base at the same seed (points)"
    return write_table(frame, stem, label=results.name, caption=caption, headers=_HEADERS)


def capability_section(frame: pd.DataFrame, results: Results) -> str:
    """The report's section on capability; empty where nothing with a known answer was asked."""
    if frame.empty:
        return ""
    rows = []
    for row in frame.to_dict("records"):
        known = row["difference"] == row["difference"]
        minus = f"{row['difference']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})" if known else ""
        rows.append([row["run"], f"{row['accuracy_percent']:.1f}", minus, f"{row['correct']} / {row['answers']}"])
    unit = next((row for row in frame["unit"] if isinstance(row, str)), "seeds")
    names = ["run", "right %", "minus base", "right / of"]
    return f"""
## Capability

A model that has lost what it knew is not misaligned but broken. Right: {RULES[results.study.world]}.
The 95 % intervals of the differences, in points, are over {unit}.

{markdown_table(names, rows, [False, True, True, True])}"""
