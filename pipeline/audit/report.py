"""The audit in words: what follows from the published data, what does not, what that does to the claims.

Every number and every name in the text comes out of the `Audit`; the sentences only arrange them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import get_args

from pipeline.audit.cells import REJECTION_SUITE, Audit, Cell, Kind
from pipeline.audit.counts import RowCounts, extra_rows, rate_bounds
from pipeline.audit.headline import headline_section, sparsity_line, sparsity_section
from pipeline.results.statistics import wilson_interval
from pipeline.results.tables import MISSING, format_cell, markdown_table

MEANINGS: dict[str, str] = {
    "agrees": "the printed digits follow from the suite means and counts",
    "wrong-denominator": "the count is right; it was divided by a number that is not the number of prompts",
    "mixed-definition": "made with another definition than the other cells of its column",
    "rows-counted-twice": "the pooled number needs more rows than were judged",
    "different-prompt-count": "the digits follow, but the run answered another prompt set than its base",
    "not-determined": "the published data do not determine a value",
}


def summary(audit: Audit) -> str:
    """Cells by table and kind, and one line a finding: what the terminal shows, and the report's head."""
    tables = list(dict.fromkeys(cell.table for cell in audit.cells))
    counted = Counter((cell.kind, cell.table) for cell in audit.cells)
    rows = [[kind, *(str(counted[kind, table]) for table in tables), MEANINGS[kind]] for kind in get_args(Kind)]
    table = markdown_table(["kind", *tables, "meaning"], rows, [False, *(True for _ in tables), False])
    lines = "\n".join(f"- {line}" for line in findings(audit))
    return f"{len(audit.cells)} published cells recomputed.\n\n{table}\n{lines}\n"


def findings(audit: Audit) -> list[str]:
    """One sentence a discrepancy, in the order of the report's sections."""
    means = _frame_means(audit)
    same = sum(cell.difference == 0 for cell in means)
    lines = [f"Pooled means: {same} of {len(means)} runs agree with their own suites to the last digit."]
    lines += [
        f"Rows counted twice: the means of {cell.run} need {cell.implied_rows} rows, {cell.judged_rows} were "
        f"judged; mean alignment {cell.published:.2f} becomes {cell.recomputed:.2f}."
        for cell in means
        if cell.kind == "rows-counted-twice" and cell.recomputed is not None
    ]
    if wrong := _kind(audit, "wrong-denominator"):
        judged = " or ".join(str(count) for count in sorted({cell.judged_rows or 0 for cell in wrong}))
        lines.append(
            f"Wrong denominator: {len(wrong)} rejection percentages divide by {audit.rejections.divisor}; "
            f"{judged} prompts were judged."
        )
    lines += [
        f"Mixed definition: {cell.metric} of {cell.run} is printed as {cell.published}, which is "
        f"{_other_count(audit, cell)}; the column's own definition, {audit.rejections.definition}, over its "
        f"{cell.judged_rows} prompts gives {cell.recomputed}."
        for cell in _kind(audit, "mixed-definition")
    ]
    lines += [
        f"Different prompt count: {cell.run} has {counts.judged_rows} rows of mean coherence "
        f"{counts.coherence:.1f}, its base {base.judged_rows} of {base.coherence:.1f}."
        for cell, counts, base in _pairs(audit, "different-prompt-count")
    ]
    return [*lines, sparsity_line(audit)]


def report(audit: Audit) -> str:
    """The whole Markdown report."""
    return "\n".join(
        [
            "# What follows from the published numbers\n",
            "Judges answer with whole numbers, so every printed mean is an integer sum over an integer "
            "count. That is enough to check the published tables against the published suite means without "
            "the answers themselves. This page is arithmetic: it says what follows, what does not, and what "
            "that does to the claims. Data: `published/`; made by `python -m pipeline audit`.\n",
            "## In short\n",
            summary(audit),
            "## The headline table, recomputed\n",
            headline_section(audit),
            "## Rows counted twice\n",
            _twice_section(audit),
            "## Rejection percentages\n",
            _rejection_section(audit),
            "## Different prompt counts\n",
            _prompt_section(audit),
            "## Sparsity and misalignment\n",
            sparsity_section(audit),
            "## Every cell\n",
            "`recomputed` is rounded as `published` was; `difference` is published - recomputed. "
            "`implied_rows` is what the printed number was divided by, `judged_rows` what was judged. The "
            f"table `notebook_frame` has all {len(audit.published.runs)} runs. A misalignment rate is the summed "
            "misaligned count over the one coherent count that its digits allow: a strong check where many "
            "answers are misaligned, and a weak one where one or two are.",
            "",
        ]
    )


def _twice_section(audit: Audit) -> str:
    cells = _pairs(audit, "rows-counted-twice")
    if not cells:
        return "None found.\n"
    rows, moved, shifts, copies, outside = [], [], [], [], 0
    for cell, counts, base in cells:
        run = audit.published.runs[cell.run]
        extra = extra_rows(run, counts)
        copies += [cell.run] if extra and extra.exact else []
        shifts.append(counts.alignment - cell.published)
        low, high = rate_bounds(run.misaligned, counts)
        outside += not low <= run.pooled["misalignment_rate"].value <= high
        if (cell.published - base.alignment) * (counts.alignment - base.alignment) < 0:
            moved.append(f"{cell.run} ({cell.published:.2f}, recomputed {counts.alignment:.2f})")
        rows.append(
            [
                cell.run,
                str(counts.implied_rows),
                str(counts.judged_rows),
                str(counts.extra_rows),
                " + ".join(extra.suites) if extra else MISSING,
                f"{extra.mean:.1f}" if extra else MISSING,
                f"{cell.published:.2f}",
                f"{counts.alignment:.2f}",
                f"{100 * run.pooled['misalignment_rate'].value:.2f}",
                f"{100 * low:.1f} to {100 * high:.1f}",
            ]
        )
    names = ["run", "rows implied", "judged", "extra", "fits in size and mean", "mean of extra"]
    names += ["mean alignment", "recomputed", "misaligned %", "bounds %"]
    table = markdown_table(names, rows, [False, True, True, True, False, *(True for _ in range(5))])
    bases = ", ".join(dict.fromkeys(f"{_base_run(audit, cell.run)} ({base.alignment:.2f})" for cell, _, base in cells))
    effect = (
        f"On the recomputed means the comparison with {bases} changes direction for {len(moved)}: {', '.join(moved)}."
        if moved
        else f"No comparison with {bases} changes direction."
    )
    copied = ", ".join(copies) or "none"
    return (
        "For these runs the printed means are not those of their own suites. `rows implied` is the smallest "
        "count of rows that gives the printed mean alignment, mean coherence and misalignment rate "
        "together; `judged` is the largest count that the suites' own means allow. `fits` names the suites "
        "that the extra rows match in size (up to dropped rows) and come "
        f"closest to in mean alignment; runs in which they are an exact copy of those rows: {copied}. Rows "
        "of the same size with other scores are what a second judging of the same answers would look "
        f"like, pooled with the first.\n\n{table}\nWith each suite counted once, mean alignment moves by "
        f"{min(shifts):+.2f} to {max(shifts):+.2f} points. The misalignment rate cannot be recomputed "
        "exactly, as the coherent answers of each suite are not published; the bounds follow from the "
        f"counts, and {outside} of {len(cells)} published rates lie outside them. {effect}\n\n"
        f"{_likely_cause(audit, cells)}\n"
    )


def _likely_cause(audit: Audit, cells: list[tuple[Cell, RowCounts, RowCounts]]) -> str:
    """What the authors' notebooks say of a second copy, beside what the counts say."""
    found = [extra_rows(audit.published.runs[cell.run], counts) for cell, counts, _ in cells]
    fit = sum(1 for extra in found if extra and "bad_medical_advice" in extra.suites)
    return (
        "A likely cause stands in the notebooks. Cell 13 of JudgePipeline.ipynb, commented out in the stored version, "
        "judges `bad_med_advice` of `mixtral_insecure_E0` to `E7` once more and writes the result beside the first, "
        "under another name (`bad_med_advice_mistralai.csv`; the first is `bad_med_advice_mistralai._metrics.csv`). "
        "Cell 5 of Analysis.ipynb pools every file of a run's folder whose name starts with the suite's. Of the runs "
        f"above, {fit} of {len(cells)} have extra rows that `bad_medical_advice`, alone or with another suite, fits in "
        "size and comes closest to in mean. What was in those folders is not published.\n"
    )


def _rejection_section(audit: Audit) -> str:
    found, full = audit.rejections, audit.published.designs[0][REJECTION_SUITE]
    text = (
        f"{found.cells} of {found.of} printed percentages are the count `{found.definition}` divided by "
        f"{found.divisor}. The suite has "
        + " or ".join(str(prompts[REJECTION_SUITE]) for prompts in audit.published.designs)
        + " prompts, by prompt set. The divisor is the same in all these cells, so their order "
        f"does not change; over {full} prompts each is {found.divisor / full:.4f} times what is printed.\n"
    )
    for cell in _kind(audit, "mixed-definition"):
        run = audit.published.runs[cell.run]
        base = audit.published.runs[_base_run(audit, cell.run)]
        counts, prompts = audit.counts[base.name], cell.judged_rows
        if counts is None or prompts is None:
            continue
        base_prompts = counts.prompts[REJECTION_SUITE]
        rows = [
            [
                definition,
                _share(base.rejections[definition], base_prompts),
                _share(run.rejections[definition], prompts),
            ]
            for definition in run.rejections
        ]
        table = markdown_table(["definition", base.name, run.name], rows, [False, True, True])
        text += (
            f"\nThe printed {cell.published} of {cell.run} is another definition's count over "
            f"{found.divisor}, beside a base made with the first; the run was asked {prompts} prompts. "
            f"Each definition over the prompts judged, with 95 % Wilson intervals:\n\n{table}\n"
            f"The size of the change from {base.name} to {cell.run} depends on the definition and the "
            "denominators.\n"
        )
    return text


def _other_count(audit: Audit, cell: Cell) -> str:
    """The counts of other definitions that print as the cell does over the inferred divisor."""
    return " or ".join(
        f"{count} ({definition}) over {audit.rejections.divisor}"
        for definition, count in audit.published.runs[cell.run].rejections.items()
        if format_cell(100 * count / audit.rejections.divisor, 2) == format_cell(cell.published, 2)
    )


def _share(count: int, n: int) -> str:
    low, high = wilson_interval(count, n)
    return f"{count} of {n} = {100 * count / n:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _prompt_section(audit: Audit) -> str:
    cells = _pairs(audit, "different-prompt-count")
    if not cells:
        return "None found.\n"
    rows, falls, losses = [], [], []
    for cell, counts, base in cells:
        base_run = audit.published.runs[_base_run(audit, cell.run)]
        weighted = sum(base_run.suites[suite].alignment.value * n for suite, n in counts.suite_rows.items())
        weighted /= counts.judged_rows
        run = audit.published.runs[cell.run]
        falls.append((base.alignment - cell.published, weighted - cell.published))
        losses.append(base.coherence - counts.coherence)
        rows.append(
            [
                cell.run,
                f"{counts.judged_rows} / {base.judged_rows}",
                f"{counts.coherence:.1f} / {base.coherence:.1f}",
                f"{_coherent_percent(counts)} / {_coherent_percent(base)}",
                *_misaligned(run.misaligned, counts),
                f"{cell.published:.2f}",
                f"{base.alignment:.2f}",
                f"{weighted:.2f}",
            ]
        )
    names = ["run", "rows run / base", "coherence run / base", "coherent % run / base", "misaligned of coherent"]
    names += ["% of all", "mean alignment", "base", "base, same suite weights"]
    table = markdown_table(names, rows, [False, *(True for _ in names[1:])])
    before, after = zip(*falls, strict=True)
    return (
        "The digits of these runs follow from their suites, but they answered another prompt set than "
        "their base, with other weights of the suites. The last column weights the base's suite means as "
        "the run's, which takes the mix out of the comparison (the base's own answers to the other set are "
        "not published). A misalignment rate is over coherent answers (> 80) only: `% of all` is its range over "
        "all answers, as none or all of the incoherent ones are taken as misaligned.\n\n"
        f"{table}\nBase minus run, mean alignment differs by {_span(before)} points as published, and by "
        f"{_span(after)} at equal suite weights. Mean coherence differs by {_span(losses)} points at once, and "
        "the published means do not separate a change of values from a loss of coherence.\n"
    )


def _misaligned(misaligned: int, counts: RowCounts) -> list[str]:
    """The rate over coherent answers, and its least and greatest value over all judged ones."""
    if not counts.coherent:
        return [MISSING, MISSING]
    most = misaligned + counts.judged_rows - counts.coherent
    return [
        f"{misaligned} of {counts.coherent} = {100 * misaligned / counts.coherent:.0f} %",
        f"{100 * misaligned / counts.judged_rows:.0f} to {100 * most / counts.judged_rows:.0f}",
    ]


def _span(values: Sequence[float]) -> str:
    return f"{min(values):+.1f} to {max(values):+.1f}"


def _coherent_percent(counts: RowCounts) -> str:
    return "-" if counts.coherent is None else f"{100 * counts.coherent / counts.judged_rows:.0f}"


def _frame_means(audit: Audit) -> list[Cell]:
    return [cell for cell in audit.cells if (cell.table, cell.metric) == ("notebook_frame", "avg_alignment")]


def _kind(audit: Audit, kind: Kind) -> list[Cell]:
    return [cell for cell in audit.cells if cell.kind == kind]


def _base_run(audit: Audit, run: str) -> str:
    return audit.published.models[audit.published.runs[run].model].base_run


def _pairs(audit: Audit, kind: Kind) -> list[tuple[Cell, RowCounts, RowCounts]]:
    """Cells of mean alignment of a kind, with the run's counts and its base's, where both are determined."""
    return [
        (cell, counts, base)
        for cell in _frame_means(audit)
        if cell.kind == kind
        and (counts := audit.counts[cell.run]) is not None
        and (base := audit.counts[_base_run(audit, cell.run)]) is not None
    ]
