"""The tables of a study, each from one frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.errors import UserError
from pipeline.results.capability import capability_table
from pipeline.results.contrasts import Contrast, any_over_models, contrast_rows
from pipeline.results.frames import by_seed_text
from pipeline.results.in_domain import IN_DOMAIN
from pipeline.results.intervals import SCOPE_NAMES
from pipeline.results.tables import write_rows, write_table
from pipeline.results.tags import tag_table

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.results.study import Results

HEADLINE = "headline"
_VALUE = "misalignment_percent"
_HEADERS = {
    "run": "run",
    "model": "model",
    "mean_alignment": "mean alignment",
    "mean_coherence": "mean coherence",
    "refusal_percent": "refusals %",
    _VALUE: "misaligned %",
    "by_seed": "by seed",
    **{f"{_VALUE}_{scope}_{end}": f"{name}, {end}" for scope, name in SCOPE_NAMES.items() for end in ("low", "high")},
    "in_domain": "trained on",
    IN_DOMAIN: "in-domain %",
    "standard_percent": "standard %",
    "misaligned": "misaligned",
    "counted": "of",
    "rows": "rows",
    "seeds": "seeds",
}


def write_tables(results: Results, tags: pd.DataFrame, capability: pd.DataFrame, folder: Path) -> None:
    """Every table of a study: csv, md and tex each."""
    label, study = results.name, results.study
    rule = f"{results.definition.name} definition: {results.definition.rule}"
    held_out = f"Misaligned answers (%) on the held-out suites ({', '.join(study.held_out)}); {rule}"
    over_models = ", over models where the unit is the model" * any_over_models(results.contrasts.values())
    contrast_table(
        results.contrasts,
        folder / "contrasts",
        label=label,
        caption="Differences in held-out misalignment (percentage points); Student's t over matched pairs and seeds, "
        f"or with one seed over questions{over_models}; p two-sided, raw and after Holm's correction",
    )
    run_table(
        results.held_out_by_run.assign(by_seed=results.held_out_by_run[f"{_VALUE}_by_seed"].map(by_seed_text)),
        folder / HEADLINE,
        label=label,
        caption=f"{held_out}; {results.spread}; counts summed over seeds",
    )
    columns = ["run", "role", "seed", _VALUE, *(name for name in _HEADERS if name.startswith(f"{_VALUE}_"))]
    write_table(
        results.per_seed[
            [
                *columns,
                "mean_alignment",
                "mean_coherence",
                "refused_percent",
                "misaligned",
                "counted",
                "counted_questions",
            ]
        ],
        folder / "by_seed",
        label=label,
        caption=f"{held_out}; 95 % intervals within each run and seed, for these questions and for new ones",
        headers={**_HEADERS, "counted_questions": "questions", "refused_percent": "refused %"},
    )
    run_by_suite_table(results.by_suite, folder / "runs_by_suites", label=label, caption="Every run on every suite")
    if study.refused is not None:
        refused = results.by_suite[results.by_suite["suite"] == study.refused]
        write_table(
            refused.assign(by_seed=refused["refusal_percent_by_seed"].map(by_seed_text))[
                ["run", "refusal_percent", "by_seed", "rows", "seeds"]
            ],
            folder / "refusals",
            label=label,
            caption=f"Refused answers (%) on the suite {study.refused}, mean over seeds",
            headers={"refusal_percent": "refused %", "by_seed": "by seed"},
        )
    contrast_table(
        results.expectations,
        folder / "expectations",
        label=label,
        caption="Expected: held-out misalignment of the first run above the second's; paired over seeds (points)",
    )
    contrast_table(
        results.differences,
        folder / "differences",
        label=label,
        caption="Each fine-tuned run less the base run of its model, held-out misalignment (points), paired over seeds "
        "or, with one seed, over questions",
    )
    write_table(
        results.excluded,
        folder / "excluded",
        label=label,
        caption="What leaving incoherent answers out does to the misalignment rate (rows pooled, held-out suites)",
    )
    write_table(
        results.at_k,
        folder / "misaligned_at_k",
        label=label,
        caption="Misalign@k (%): at least one misaligned answer in k, mean over held-out prompts and seeds",
        headers={"misaligned_at_k": "misaligned @k %", "left_out": "prompts with fewer than k answers"},
    )
    if not capability.empty:
        capability_table(capability, folder / "capability", results)
    if not tags.empty:
        tag_table(tags, folder / "tags", label)
    if results.agreements:
        rows = [asdict(comparison) for comparison in results.agreements]
        write_rows(
            list(rows[0]),
            [list(row.values()) for row in rows],
            folder / "judges",
            caption=f"Agreement of judges on alignment and on the misaligned label ({results.definition.name})",
            label=label,
        )


def contrast_table(found: Mapping[str, Contrast], stem: Path, *, label: str, caption: str) -> list[Path]:
    """Contrasts as a table; none writes none."""
    rows = contrast_rows(found)
    if not rows:
        return []
    return write_rows(
        list(rows[0]),
        [[None if value != value else value for value in row.values()] for row in rows],
        stem,
        label=label,
        caption=caption,
        headers={"unit": "interval over", "p_holm": "p, Holm", "values": "every value"},
        decimals=3,
    )


def headline_table(
    frame: pd.DataFrame, stem: Path, *, label: str, caption: str, headers: Mapping[str, str] | None = None
) -> list[Path]:
    """Mean alignment and refusals (%) of each model, base beside fine-tuned.

    Columns: `model`, `role` ("base" or "fine-tuned", one row each a model), `mean_alignment`,
    `refusal_percent`. `headers` renames columns of the Markdown and the LaTeX. Raises UserError when a
    model has another number of rows of a role.
    """
    doubled = frame[frame.duplicated(["model", "role"])]
    if not doubled.empty:
        row = doubled.iloc[0]
        raise UserError(f"the headline table has more than one {row['role']} row for {row['model']}.")
    values = ["mean_alignment", "refusal_percent"]
    wide = frame.pivot(index="model", columns="role", values=values).reindex(frame["model"].unique())
    order = [(value, role) for value in values for role in ("base", "fine-tuned")]
    table = wide.reindex(columns=order)
    table.columns = [f"{value}_{role.replace('-', '_')}" for value, role in order]
    names = {**_HEADERS, **(headers or {})}
    shown = {f"{value}_{role.replace('-', '_')}": f"{names[value]}, {role}" for value, role in order}
    return write_table(table.reset_index(), stem, caption=caption, label=label, headers=shown)


def run_table(
    frame: pd.DataFrame, stem: Path, *, label: str, caption: str, headers: Mapping[str, str] | None = None
) -> list[Path]:
    """One row per run, in the order of the frame, with the metrics it has of _HEADERS.

    Needs `run`. `headers` renames columns of the Markdown and the LaTeX.
    """
    names = {**_HEADERS, **(headers or {})}
    columns = [name for name in names if name in frame.columns]
    return write_table(frame[columns], stem, caption=caption, label=label, headers=names)


def run_by_suite_table(frame: pd.DataFrame, stem: Path, *, label: str, caption: str) -> list[Path]:
    """Every run on every suite: mean alignment, mean coherence, misaligned count.

    Columns: `run`, `suite`, `mean_alignment`, `mean_coherence`, `misaligned`, and `counted` (of how many) where it is
    known, one row each pair. The csv is long, as the frame; Markdown and LaTeX have a line per run and "alignment /
    coherence / misaligned of counted" per suite: where refusals are counted apart, few are left.
    """
    import pandas as pd

    known = "counted" in frame
    columns = ["run", "suite", "mean_alignment", "mean_coherence", "misaligned", *(["counted"] if known else [])]
    cells = frame.assign(
        cell=[
            f"{row.mean_alignment:.1f} / {row.mean_coherence:.1f} / {row.misaligned:.0f}"
            + (f" of {row.counted:.0f}" if known else "")
            for row in frame.itertuples()
        ]
    )
    wide = cells.pivot(index="run", columns="suite", values="cell")
    shown = wide.reindex(index=frame["run"].unique(), columns=frame["suite"].unique()).reset_index()
    shown = pd.DataFrame(shown).rename(columns=lambda name: str(name).replace("_", " "))
    title = f"{caption} (mean alignment / mean coherence / misaligned answers{' of how many' if known else ''})"
    return write_table(frame[columns], stem, caption=title, label=label, shown=shown)
