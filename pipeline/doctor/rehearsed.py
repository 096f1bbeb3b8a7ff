"""What rehearsals (`make rehearse`) measured: seconds of a training step, and memory beside what was planned."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.common.files import read_json
from pipeline.models.cards import Card, key_of

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def rehearsals(study: str) -> list[dict[str, Any]]:
    """What rehearsals of the study, or of a part of it, at true width wrote, whatever the machine."""
    reports = [read_json(path) for path in sorted(RESULTS.glob(f"rehearsal-{study}-*.json"))]
    return [report for report in reports if report["width"] == "true"]


def rehearsals_on(study: str, card: Card) -> list[dict[str, Any]]:
    """Those on such a card."""
    kind = key_of(card.name)
    found = [report for report in rehearsals(study) if report["machine"]["gpu"]]
    return [report for report in found if kind is not None and key_of(report["machine"]["gpu"]) == kind]


def rehearsed_step(reports: list[dict[str, Any]], base: str, config: object) -> float | None:
    """Seconds of the slowest optimizer step rehearsed, for all layers of the base; None where it was not rehearsed.

    Such a step is of few, short rows, and writes a checkpoint: on a GPU it is its weights' traffic, not its products.
    """
    layers = vars(config)["num_hidden_layers"]
    steps = [
        run["train"]["step_seconds"] * layers / report["bases"][base]["fields"]["num_hidden_layers"]
        for report in reports
        for run in report["runs"].values()
        if run["base"] == base and run["train"]["step_seconds"] is not None
    ]
    return max(steps, default=None)


def memory(report: dict[str, Any]) -> Iterator[tuple[str, str, float, float]]:
    """(run, stage, bytes planned, bytes measured) of every stage of a rehearsal that loaded a model.

    On a GPU, all of its memory. Without one, a process's own memory, less what its imports take, beside the plan
    without what is for CUDA.
    """
    for run, found in report["runs"].items():
        for stage in ("train", "sample"):
            entry = found.get(stage, {})
            if entry.get("predicted") is None:
                continue
            if report["machine"]["gpu"]:
                yield run, stage, entry["predicted"], entry["gpu"]
            else:
                planned = entry["predicted"] - entry["predicted_slack"]
                yield run, stage, planned, entry["own"] - report["imports_bytes"][stage]


def most_of_plan(reports: list[dict[str, Any]], base: str) -> float | None:
    """The largest share of its plan that a rehearsal on the base took of memory; None where none was measured."""
    shares = [
        measured / planned
        for report in reports
        for run, _, planned, measured in memory(report)
        if report["runs"][run]["base"] == base
    ]
    return max(shares, default=None)
