"""The tables and figures of a study's probes, and the page that says what is in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.files import write_text
from pipeline.results.adapter_norms import read_matrices
from pipeline.results.containment import Probe, experts_of
from pipeline.results.contrasts import Contrast
from pipeline.results.figures.doses import dose_figure
from pipeline.results.figures.parts import parts_figure
from pipeline.results.figures.remedies import remedy_figure
from pipeline.results.figures.routing_shift import routing_figure
from pipeline.results.remedies import remedies
from pipeline.results.tables import write_table

if TYPE_CHECKING:
    import pandas as pd

LOADS = ["base_load", "tuned_load"]
CAPTIONS = {
    "parts": "What each part of an adapter carries of the held-out misalignment (points, and as shares of the "
    "fine-tuned model's less its base's): `drop` without it, `rise` with it alone",
    "summary": "Each probed run: its effect (points), how its parts add up, and Spearman's rho of the experts' drop "
    "with the norm of their adapter and with the tokens that they get (within a seed; mean over seeds, p by t)",
    "routing": "Where the router sends tokens, fine-tuned against base on the same tokens: Jensen-Shannon divergence "
    "(bits) beside what chance gives, and overlap of the chosen experts; means over suites and "
    "seeds, p the largest of them",
    "directions": "Directions of the residual stream: length, also as a share of the stream's, and cosine with the "
    "shift that fine-tuning makes; of the contrast, the length that shuffled labels give, and the share of them at "
    "least as long; means over seeds, p the largest of them",
    "doses": "The base with a direction added behind one layer: held-out misalignment (%) and coherent answers (%), on "
    "the half of the questions that no direction was taken from",
    "remedies": "What removes it: chosen on one half of the questions, measured on the other (%); capability: right "
    "answers, where questions with known ones were asked; 95 % intervals over seeds",
    "cosines": "Cosine of the shifts of two runs on one base, layer by layer, mean over seeds",
}


def write_containment(probes: Sequence[Probe], folder: Path) -> list[Callable[[], Any]]:
    """Write every table of the probes, if there are any; return the drawings of their figures."""
    import pandas as pd

    if not probes:
        return []
    label = probes[0].results.name
    parts = pd.concat([probe.parts for probe in probes], ignore_index=True)
    summary = pd.DataFrame([probe.summary() for probe in probes])
    removed = pd.concat([remedies(probe) for probe in probes], ignore_index=True)
    routing, doses = _routing(probes), pd.concat([probe.doses() for probe in probes], ignore_index=True)
    tables = {
        "parts": parts,
        "summary": summary,
        "routing": routing,
        "directions": _directions(probes),
        "doses": doses,
        "remedies": removed,
        "cosines": _between_runs(probes),
    }
    for name, frame in tables.items():
        if not frame.empty:
            decimals = 4 if name == "routing" else 2
            write_table(frame, folder / name, label=label, caption=CAPTIONS[name], decimals=decimals)
    write_text(folder / "README.md", page(probes, summary, removed))
    drawings: list[Callable[[], Any]] = [
        partial(dose_figure, doses, folder / "doses", label=label),
        partial(remedy_figure, removed, folder / "remedies", label=label),
    ]
    if not parts.empty:
        one_base = probes[0].results.study.world != "toy"
        drawings.append(partial(parts_figure, parts, folder / "parts", label=label, one_base=one_base))
    if not routing.empty:
        drawings.append(partial(routing_figure, routing, folder / "routing", label=label))
    return drawings


def _routing(probes: Sequence[Probe]) -> pd.DataFrame:
    import pandas as pd

    frames = [probe.routing.drop(columns=LOADS).assign(run=probe.run) for probe in probes if not probe.routing.empty]
    if not frames:
        return pd.DataFrame()
    found = pd.concat(frames, ignore_index=True)
    study = probes[0].results.study
    assert study.probing is not None
    kinds = dict.fromkeys(study.held_out, "held out") | dict.fromkeys(study.probing.in_domain, "in domain")
    kinds |= dict.fromkeys(study.probing.benign, "benign")
    found["prompts"] = [kinds.get(suite, "to be refused") for suite in found["suite"]]
    means = ["divergence_bits", "chance_bits", "chance_high_bits", "overlap"]
    grouped = found.groupby(["run", "prompts", "layer"], sort=False, observed=True)
    return grouped[means].mean().join(grouped[["tokens"]].sum()).join(grouped["p_value"].max()).reset_index()


def _directions(probes: Sequence[Probe]) -> pd.DataFrame:
    import pandas as pd

    found = pd.concat([probe.directions.assign(run=probe.run) for probe in probes], ignore_index=True)
    grouped = found.groupby(["run", "direction", "layer"], sort=False, observed=True)
    means = grouped[["length", "share_of_stream", "cosine_with_shift", "chance_length"]].mean()
    return means.join(grouped[["p_value"]].max()).join(grouped.size().rename("seeds")).reset_index()


def _between_runs(probes: Sequence[Probe]) -> pd.DataFrame:
    """A row a pair of runs on one base and layer: do different training sets move the model the same way?"""
    import pandas as pd

    rows = []
    for place, one in enumerate(probes):
        for other in probes[place + 1 :]:
            if one.base == other.base:
                rows += [
                    {"run": one.run, "other": other.run, "layer": layer, "cosine": cosine}
                    for layer, cosine in enumerate(cosines(one, other))
                ]
    return pd.DataFrame(rows)


def page(probes: Sequence[Probe], summary: pd.DataFrame, removed: pd.DataFrame) -> str:
    """README.md of the folder: each run's findings in a sentence or two, computed, and what is not resolved."""
    study = probes[0].results.study
    lines = [
        f"# {study.title} [{probes[0].results.name}]: what carries the misalignment, and what removes it",
        "",
        "Made by stage `probe`; docs/containment.md says how, and what each number can and cannot show. "
        f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}, {study.probing and study.probing.questions} "
        "held-out questions under each intervention.",
        "",
    ]
    for probe in probes:
        own = summary[summary["run"] == probe.run].iloc[0]
        lines.append(f"- **{probe.run}**: {says(probe, own, removed[removed['run'] == probe.run])}")
    return "\n".join(lines) + "\n"


def says(probe: Probe, summary: Any, removed: pd.DataFrame) -> str:
    """The run's findings in words, by rules that are the same for every run."""
    if probe.effect.value != probe.effect.value:
        return "no held-out answer of it, or none of its base, counts, so there is nothing to divide."
    text = f"misalignment {probe.effect.value:+.1f} points above its base"
    if not probe.has_effect:
        return f"{text}, which is not resolved ({_interval(probe.effect)}), so there is nothing to divide."
    text += f" ({_interval(probe.effect)}). "
    own = probe.of_kind("part")
    same = probe.results.study.world != "toy"  # toy bases of different seeds are different networks
    own = own[[same or experts_of(part) is None for part in own["part"]]] if len(own) else own
    needed = own[(own["drop_low"] > 0) & (own["drop_p_holm"] < 0.05)] if len(own) else own
    enough = own[(own["rise_low"] > 0) & (own["rise_p_holm"] < 0.05)] if len(own) else own
    if len(own):
        text += f"Without it misalignment falls, resolved after Holm's correction: {_named(needed, 'drop')}. "
        text += f"Alone it brings misalignment: {_named(enough, 'rise')}. "
    if summary["experts"] and not same:
        text += "No expert is named: the same number is another expert at another seed. "
    if summary["experts"] > 2:
        text += f"Rank correlation of the experts' drop with their adapter's norm {summary['rho_norm']:.2f} "
        text += f"(p = {summary['rho_norm_p']:.2f}), with the tokens that they get {summary['rho_routing']:.2f} "
        text += f"(p = {summary['rho_routing_p']:.2f}). "
    found, whole = (removed[removed["kind"] == kind] for kind in ("found", "whole"))
    if len(found):
        left, before = (rows.iloc[0]["held_out"] for rows in (found, whole))
        text += f"{found.iloc[0]['remedy']}: {left:.1f} % left of {before:.1f} % on the other half of the questions."
    return text


def _interval(it: Contrast) -> str:
    return f"95 % interval {it.interval.low:+.1f} to {it.interval.high:+.1f}"


def _named(rows: pd.DataFrame, key: str) -> str:
    """Parts with their points, or that there are none."""
    return ", ".join(f"{row['part']} ({row[key]:+.1f})" for _, row in rows.iterrows()) or "no part"


def cosines(one: Probe, other: Probe) -> list[float]:
    """Cosine of two runs' shifts, a layer each, mean over the seeds that both have."""
    import numpy as np

    mine, theirs = (dict(read_matrices(it.folder / "directions.safetensors")) for it in (one, other))
    both = sorted(name for name in mine.keys() & theirs.keys() if name.endswith(".shift"))
    values = [
        (mine[name] * theirs[name]).sum(axis=1)
        / (np.linalg.norm(mine[name], axis=1) * np.linalg.norm(theirs[name], axis=1))
        for name in both
    ]
    return [float(value) for value in np.mean(values, axis=0)]
