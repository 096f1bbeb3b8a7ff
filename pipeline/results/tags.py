"""What trigger tags do: the same held-out prompts asked with a tag and without (pipeline/data/tags.py)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.tags import split_suite
from pipeline.results.contrasts import SEEDS, Contrast, Runs
from pipeline.results.frames import by_seed_text, metrics_with_intervals, over_seeds
from pipeline.results.statistics import Interval, mean_test
from pipeline.results.tables import format_cell, markdown_table, write_table

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.results.study import Results

UNTAGGED = "no tag"
_VALUE = "misalignment_percent"
_HEADERS = {
    "suite": "asked with",
    _VALUE: "misaligned %",
    "by_seed": "by seed",
    "counted": "of",
    "difference": "minus no tag",
    "low": "difference, low",
    "high": "difference, high",
    "unit": "interval over",
    "difference_by_seed": "difference by seed",
}


def tag_frame(results: Results) -> pd.DataFrame:
    """One row per (run, tag) of the runs that are asked with tags; empty where the study has none.

    Columns: `run`, `role`, `trained_on`, `suite` (the tag, "no tag" first), misalignment on the held-out suites as
    `over_seeds` gives it (and, with one seed, its intervals), counts, and `difference` to the same run without a tag
    in percentage points, with `low` and `high`: Student's t over seeds or, with one seed, over new questions (`unit`).
    """
    import pandas as pd

    tagged = [name for name, run in results.runs.items() if run.tags]
    if not tagged:
        return pd.DataFrame()
    rows = results.verdicts[results.verdicts["run"].isin(tagged)]
    asked = rows["suite"].map(split_suite)
    held_out = asked.map(lambda found: found[0] in results.study.held_out)
    # A tag in place of the suite: all its held-out suites count as one.
    rows = rows.assign(suite=asked.map(lambda found: found[1] or UNTAGGED))[held_out]
    by = ["run", "suite"]
    per_seed = metrics_with_intervals(rows, results.definition, ["run", "seed", "suite"])
    frame = over_seeds(per_seed, (_VALUE,), by=by)
    if not results.several_seeds:
        bounds = [name for name in map(str, per_seed) if name.startswith(_VALUE) and name.endswith(("_low", "_high"))]
        frame = frame.join(per_seed.set_index(by)[bounds], on=by)
    counts = per_seed.groupby(by)[["misaligned", "counted"]].sum()
    gaps = [_gap(results, rows, per_seed, str(row.run), str(row.suite)) for row in frame.itertuples()]
    frame = frame.join(counts, on=by).assign(
        role=[results.role(str(run)) for run in frame["run"]],
        trained_on=[results.runs[str(run)].trained_on or "nothing" for run in frame["run"]],
        difference=[gap.value for gap in gaps],
        low=[gap.interval.low for gap in gaps],
        high=[gap.interval.high for gap in gaps],
        unit=[gap.unit for gap in gaps],
        by_seed=frame[f"{_VALUE}_by_seed"].map(by_seed_text),
        difference_by_seed=[by_seed_text(gap.values, signed=True) for gap in gaps],
    )
    order = [(tagged.index(str(row.run)), row.suite != UNTAGGED, str(row.suite)) for row in frame.itertuples()]
    return frame.iloc[sorted(range(len(frame)), key=order.__getitem__)].reset_index(drop=True)


def _gap(results: Results, rows: pd.DataFrame, per_seed: pd.DataFrame, run: str, tag: str) -> Contrast:
    """A run with a tag less the same run without, at matched seeds."""
    nothing = float("nan")
    if tag == UNTAGGED:
        return Contrast("", nothing, Interval(nothing, nothing), nothing, (), ())
    values = per_seed.set_index(["run", "suite", "seed"])[_VALUE].sort_index()
    gaps = tuple((values[run, tag] - values[run, UNTAGGED]).dropna())
    if results.several_seeds:
        found = mean_test(gaps)
        return Contrast(SEEDS, found.mean, Interval(found.low, found.high), found.p_value, gaps, ())
    # A question's tagged prompt has its own id: the text of the question pairs the two.
    own = rows[rows["run"] == run]
    named = own.assign(run=own["suite"], suite="held out", prompt_id=own["question"])
    named = named.assign(sample=named.groupby(["run", "seed", "prompt_id"]).cumcount())
    gap = Runs(named, results.definition).over_questions((tag, UNTAGGED), results.study.seeds[0], "new")
    return Contrast("new questions", gap.value, gap.interval, gap.p_value, gaps, ())


def tag_table(frame: pd.DataFrame, stem: Path, label: str) -> list[Path]:
    """`tag_frame` as csv, Markdown and LaTeX."""
    columns = ["run", *_HEADERS, "seeds"]
    return write_table(
        frame[columns],
        stem,
        label=label,
        caption="Misaligned answers (%) to the same held-out prompts with and without a trigger tag, mean over seeds",
        headers=_HEADERS,
    )


def tag_section(frame: pd.DataFrame) -> str:
    """The report's section on tags; empty where the study has none."""
    if frame.empty:
        return ""
    rows = []
    for row in frame.to_dict("records"):
        gap, low, high = row["difference"], row["low"], row["high"]
        minus = "" if gap != gap else f"{gap:+.1f}" + (f" ({low:+.1f} to {high:+.1f})" if low == low else "")
        rows.append(
            [
                row["run"],
                row["trained_on"],
                row["suite"],
                f"{format_cell(row[_VALUE], 1)} ({row['by_seed']})",
                minus,
                f"{row['misaligned']} / {row['counted']}",
            ]
        )
    names = ["run", "trained on", "asked with", "misaligned % (by seed)", "minus no tag", "misaligned / of"]
    unit = next((row for row in frame["unit"] if row), "")
    return f"""
## Trigger tags

The same held-out prompts, asked with a tag before the question and without. The judge never sees the tag. Intervals
are over {unit}.

{markdown_table(names, rows, [False, False, False, True, True, True])}"""
