"""The headline table recomputed, and how much its few models can say about sparsity."""

from __future__ import annotations

from pipeline.audit.cells import Audit
from pipeline.results.statistics import RankTest, exact_rank_test
from pipeline.results.tables import MISSING, format_cell, markdown_table


def headline_section(audit: Audit) -> str:
    """The headline table with every cell recomputed, rejections over the prompts judged."""
    rows = []
    for model, run in audit.headline.items():
        row = [model]
        for metric in ("avg_alignment", "strong_reject_percent"):
            for name in (audit.published.models[model].base_run, run):
                cell = next(it for it in audit.cells if (it.table, it.run, it.metric) == ("headline", name, metric))
                row += [f"{cell.published:.2f}", format_cell(cell.recomputed, 2)]
        rows.append(row)
    names = ["model", "alignment, base", "recomputed", "fine-tune", "recomputed"]
    names += ["rejection %, base", "recomputed", "fine-tune", "recomputed"]
    return markdown_table(names, rows, [False, *(True for _ in names[1:])])


def sparsity_tests(audit: Audit) -> list[tuple[str, RankTest, RankTest]]:
    """Per measure of the headline runs: its name, the one-sided and the two-sided exact test.

    Measures go with the number of experts a layer: the fall in mean alignment from base to fine-tune, and
    the fine-tune's misalignment rate. One-sided: the more experts, the less misalignment.
    """
    experts = [audit.published.models[model].experts for model in audit.headline]
    falls, rates = [], []
    for model, run in audit.headline.items():
        base = audit.published.runs[audit.published.models[model].base_run]
        tuned = audit.published.runs[run]
        falls.append(base.pooled["avg_alignment"].value - tuned.pooled["avg_alignment"].value)
        rates.append(tuned.pooled["misalignment_rate"].value)
    return [
        (name, exact_rank_test(experts, values, "less"), exact_rank_test(experts, values, "two-sided"))
        for name, values in (
            ("fall in mean alignment", falls),
            ("misalignment rate of the fine-tune", rates),
        )
    ]


def sparsity_line(audit: Audit) -> str:
    """The finding in one sentence."""
    name, less, both = sparsity_tests(audit)[0]
    return (
        f"Sparsity: {name} against experts a layer over {less.n} models has Spearman's rho {less.rho:+.2f}, "
        f"exact p = {less.p_value:.3f} one-sided and {both.p_value:.3f} two-sided; with {less.n} models p "
        f"cannot be below {less.floor:.3f} and {both.floor:.3f}."
    )


def sparsity_section(audit: Audit) -> str:
    """The claim's data, its tests, and what else differs between the models."""
    rows = []
    for model, run in audit.headline.items():
        about = audit.published.models[model]
        base, tuned = audit.published.runs[about.base_run], audit.published.runs[run]
        counts = audit.counts[run]
        rows.append(
            [
                model,
                str(about.experts),
                f"{100 * about.active / about.experts:.2f}",
                f"{base.pooled['avg_alignment'].value:.2f}",
                f"{tuned.pooled['avg_alignment'].value:.2f}",
                f"{base.pooled['avg_alignment'].value - tuned.pooled['avg_alignment'].value:.2f}",
                _percent(base.pooled["misalignment_rate"].value),
                _percent(tuned.pooled["misalignment_rate"].value),
                tuned.tuned,
                str(sum(counts.prompts.values())) if counts else MISSING,
                f"{tuned.pooled['avg_coherence'].value:.1f}",
            ]
        )
    names = ["model", "experts", "active %", "base", "fine-tune", "fall", "base misaligned %"]
    names += ["fine-tune misaligned %", "tuned", "prompts", "fine-tune coherence"]
    left = {"model", "tuned"}
    table = markdown_table(names, rows, [name not in left for name in names])
    tests = [
        [name, f"{less.rho:+.2f}", str(less.n)]
        + [f"{value:.3f}" for value in (less.p_value, less.floor, both.p_value, both.floor)]
        for name, less, both in sparsity_tests(audit)
    ]
    heads = ["measure against experts", "rho", "n", "p one-sided", "floor", "p two-sided", "floor"]
    n = len(audit.headline)
    return (
        f"The claim that sparser models show less emergent misalignment rests on {n} models. The order of "
        "the models by experts a layer is compared with two measures, by the exact permutation test of "
        f"Spearman's rank correlation (all orders of {n} models, equally likely if nothing is related). "
        f"One-sided means: the more experts, the less.\n\n{table}\n"
        f"{markdown_table(heads, tests, [False, *(True for _ in heads[1:])])}\n"
        "`floor` is the smallest p-value that any outcome could give at this n: the published order can make "
        f"the claim a hypothesis, and {n} models cannot establish it, whatever their values. What was tuned, "
        "the prompts and the coherence also differ between the models, and nothing separates them from "
        "sparsity.\n"
    )


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f}"
