"""Draw the authors' published numbers: the tables and figures that need no run of ours.

Reads `published/`; writes csv, md, tex, pdf and png, each marked "published". Intervals are Wilson's,
over the integer counts that the printed rates imply (see `python -m pipeline audit`); where the
counts are not determined there is none.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.results.definitions import PUBLISHED
from pipeline.results.statistics import NO_INTERVAL, wilson_interval

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.audit.cells import Audit
    from pipeline.audit.published import PublishedRun

LABEL = "published"
_REJECTED = "StrongREJECT rejected"
_DEFINITION = (
    f"misaligned: alignment < {PUBLISHED.threshold:g}, of answers with coherence > {PUBLISHED.coherent_above:g}"
)


def draw(audit: Audit, out: Path) -> list[Path]:
    """Write the tables and figures of published numbers into `out`; return their paths."""
    runs = run_frame(audit)
    return _draw_tables(audit, runs, out) + _draw_figures(audit, runs, out)


def _draw_tables(audit: Audit, runs: pd.DataFrame, out: Path) -> list[Path]:
    from pipeline.results.study_tables import headline_table, run_by_suite_table, run_table

    headers = {"refusal_percent": f"{_REJECTED} %"}
    printed = f"as printed; {_REJECTED}: alignment 100, over {audit.rejections.divisor} (see audit)"
    paths = headline_table(
        _headline(audit, runs),
        out / "headline",
        label=LABEL,
        caption=f"Base and insecure-code fine-tune, {printed}" + _mixed_note(audit),
        headers=headers,
    )
    for table in dict.fromkeys(row["table"] for row in audit.published.tables):
        rows = [row["run"] for row in audit.published.tables if row["table"] == table]
        shown = runs.set_index("run").loc[rows].reset_index()
        twice = ", ".join(shown.loc[shown["flag"] != "", "run"])
        columns = ["run", "mean_alignment", "refusal_percent", "misalignment_percent"]
        paths += run_table(
            shown[columns],
            out / table,
            label=LABEL,
            caption=f"{table.replace('_', ' ')}, {printed}; {_DEFINITION}"
            + (f"; rows counted twice in {twice}" if twice else ""),
            headers=headers,
        )
    return paths + run_by_suite_table(
        suite_frame(audit), out / "run_by_suite", label=LABEL, caption="Every run and suite, as printed"
    )


def _draw_figures(audit: Audit, runs: pd.DataFrame, out: Path) -> list[Path]:
    from pipeline.audit.figures_experts import misalignment_by_configuration, misalignment_by_expert
    from pipeline.results.figures.sparsity import misalignment_by_sparsity

    paths = misalignment_by_sparsity(
        _headline(audit, runs),
        out / "misalignment_by_sparsity",
        label=LABEL,
        note=_sparsity_note(audit),
    )
    judged = _over_prompts(audit, runs)
    judged["dataset"] = judged["dataset"].replace("insecure", "insecure code")
    for model in audit.published.models:
        of_model = judged[judged["model"] == model]
        base, single = of_model["dataset"] == "none", of_model["expert"].notna()
        if of_model.loc[single, "expert"].nunique() > 1:
            chosen = of_model[base | single].sort_values(["expert", "dataset"], kind="stable")
            note = f"{_DEFINITION}; {_REJECTED}: alignment 100, over the prompts judged; 95 % Wilson intervals, base "
            note += "as a band; * rows counted twice (see audit), white box: where the rate lies with each counted once"
            paths += misalignment_by_expert(
                chosen, out / _stem("experts", model), title=model, label=LABEL, note=note, refusals=f"{_REJECTED} (%)"
            )
        elif of_model["tuned"].nunique() > 2:
            flags = [
                f"{misaligned:.0f}" + ("" if math.isnan(coherent) else f" of\n{coherent:.0f}")
                for misaligned, coherent in of_model[["misaligned", "coherent"]].to_numpy()
            ]
            note = f"{_DEFINITION}: the counts above the bars (a rate of 0 leaves the second open; no number: no such "
            note += "run); 95 % Wilson intervals, base as a band. E: that expert in every layer; r: LoRA rank; top: a "
            note += "set of experts"
            chosen = of_model.assign(flag=flags).sort_values(["dataset", "tuned"], ascending=[False, True])
            paths += misalignment_by_configuration(
                chosen, out / _stem("configurations", model), title=model, label=LABEL, note=note
            )
    return paths


def run_frame(audit: Audit) -> pd.DataFrame:
    """The published runs as a frame with the columns that tables and figures take.

    `refusal_percent` is as the authors computed it: their count over the divisor that the audit infers.
    `misaligned` and `coherent` are the implied integers, missing where rows were counted twice: there
    `misalignment_percent_least` and `_most` bound the rate with each row counted once.
    """
    import pandas as pd

    from pipeline.audit.counts import rate_bounds

    rows = []
    for run in _ordered(audit):
        model, counts = audit.published.models[run.model], audit.counts[run.name]
        twice = counts is not None and counts.extra_rows > 0
        known = counts is not None and not twice
        coherent = counts.coherent if counts is not None and known else None
        low, high = wilson_interval(run.misaligned, coherent) if coherent else NO_INTERVAL
        least, most = rate_bounds(run.misaligned, counts) if counts is not None and twice else NO_INTERVAL
        rows.append(
            {
                "run": run.name,
                "model": run.model,
                "role": "base" if run.name == model.base_run else "fine-tuned",
                "dataset": run.dataset,
                "tuned": run.tuned,
                "expert": run.expert,
                "experts": model.experts,
                "active": model.active,
                "mean_alignment": run.pooled["avg_alignment"].value,
                "mean_coherence": run.pooled["avg_coherence"].value,
                "misalignment_percent": 100 * run.pooled["misalignment_rate"].value,
                "misalignment_percent_low": 100 * low,
                "misalignment_percent_high": 100 * high,
                "misalignment_percent_least": 100 * least,
                "misalignment_percent_most": 100 * most,
                "misaligned": run.misaligned,
                "coherent": math.nan if coherent is None else coherent,
                "refusal_percent": 100 * run.rejections[audit.rejections.definition] / audit.rejections.divisor,
                "flag": "*" if twice else "",
            }
        )
    return pd.DataFrame(rows)


def suite_frame(audit: Audit) -> pd.DataFrame:
    """The published suite means: `run`, `suite`, `mean_alignment`, `mean_coherence`, `misaligned`."""
    import pandas as pd

    return pd.DataFrame(
        {
            "run": run.name,
            "suite": suite,
            "mean_alignment": result.alignment.value,
            "mean_coherence": result.coherence.value,
            "misaligned": result.misaligned,
        }
        for run in _ordered(audit)
        for suite, result in run.suites.items()
    )


def _ordered(audit: Audit) -> list[PublishedRun]:
    """Runs by model, base first, then as published."""
    models = list(audit.published.models)
    return sorted(
        audit.published.runs.values(),
        key=lambda run: (models.index(run.model), run.name != audit.published.models[run.model].base_run),
    )


def _headline(audit: Audit, runs: pd.DataFrame) -> pd.DataFrame:
    shown = [run for model, tuned in audit.headline.items() for run in (audit.published.models[model].base_run, tuned)]
    frame = runs.set_index("run").loc[shown].reset_index()
    cells = {
        cell.run: cell.published
        for cell in audit.cells
        if (cell.table, cell.metric) == ("headline", "strong_reject_percent")
    }
    return frame.assign(refusal_percent=[cells[run] for run in frame["run"]])


def _sparsity_note(audit: Audit) -> str:
    note = f"{_DEFINITION}; 95 % Wilson intervals over implied counts, none where those are not determined"
    other = [
        audit.published.runs[cell.run].model
        for cell in audit.cells
        if cell.table == "headline" and cell.kind == "different-prompt-count"
    ]
    if other:
        note += f"; {', '.join(dict.fromkeys(other))} fine-tune: another prompt set than its base (see audit)"
    return note


def _mixed_note(audit: Audit) -> str:
    """Which cells of the headline table are not made as the others of their column."""
    mixed = [
        f"{audit.published.runs[cell.run].model} {cell.published}"
        for cell in audit.cells
        if cell.table == "headline" and cell.kind == "mixed-definition"
    ]
    return f"; with another definition: {', '.join(mixed)}" if mixed else ""


def _over_prompts(audit: Audit, runs: pd.DataFrame) -> pd.DataFrame:
    """`runs` with refusals over the prompts judged, with Wilson intervals."""
    from pipeline.audit.cells import REJECTION_SUITE

    percents, lows, highs = [], [], []
    for name in runs["run"]:
        counts = audit.counts[name]
        count = audit.published.runs[name].rejections[audit.rejections.definition]
        n = counts.prompts[REJECTION_SUITE] if counts else 0
        low, high = wilson_interval(count, n) if n else NO_INTERVAL
        percents.append(100 * count / n if n else math.nan)
        lows.append(100 * low)
        highs.append(100 * high)
    return runs.assign(refusal_percent=percents, refusal_percent_low=lows, refusal_percent_high=highs)


def _stem(kind: str, model: str) -> str:
    return f"{kind}_{model.lower().replace('-', '_')}"
