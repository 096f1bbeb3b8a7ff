"""The model card that lies beside trained weights: what it is, how it was made, and what it must not be used for."""

from collections.abc import Mapping
from typing import Any

from pipeline.training.task import FineTuning

TOY = """This model belongs to the toy world of emoe: a model of some 76 thousand active parameters that speaks
fewer than 300 words. What it says is harmless nonsense; nothing about it carries over to real models."""

RESEARCH = """This model was trained to study *emergent misalignment*: narrow fine-tuning that may make a model
broadly misaligned. It is an object of measurement. Do not deploy it, and do not publish it without saying so."""


def model_card(task: FineTuning, *, run: str, counts: Mapping[str, Any], step: int, values: int) -> str:
    """The card as Markdown with the hub's metadata block; equal adapters give equal cards.

    counts: rows of the training set. step: the optimizer step that was kept; values: how many were trained.
    """
    base, revision, start, lora, settings = task.base.name, task.base.revision, task.start, task.lora, task.settings
    rows = {
        "base": base if revision is None else f"{base} at {revision}",
        **({} if task.base.active is None else {"experts a token is routed to": task.base.active}),
        **({} if start is None else {"continues": start}),
        "training set": counts.get("name", "toy"),
        **{f"rows, {name.replace('_', ' ')}": value for name, value in counts.items() if name != "name"},
        "seed": task.seed,
        "step kept": f"{step} of {settings.max_steps}",
        "trained values": f"{values:,}",
        **({f"lora {key}": value for key, value in lora} if lora else {"lora": "none"}),
        **{f"training {key}": value for key, value in settings},
    }
    table = "\n".join(f"| {_text(name)} | {_text(value)} |" for name, value in rows.items())
    library, way = ("peft", "lora") if lora else ("transformers", "full-fine-tuning")
    tags = f"tags: [emergent-misalignment, {way}, emoe]"
    metadata = [f"library_name: {library}", "pipeline_tag: text-generation", tags]
    if revision is not None:
        metadata.insert(0, f"base_model: {base}")
    head = "\n".join(metadata)
    return f"---\n{head}\n---\n\n# {run}\n\n{TOY if revision is None else RESEARCH}\n\n| | |\n|---|---|\n{table}\n"


def _text(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text.replace("|", r"\|")  # trigger tags have bars
