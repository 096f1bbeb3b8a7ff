"""What the hub studies take on cards of three sizes, in Markdown: tables of README.md and docs/artifact-appendix.md.

All of it is computed from sizes, plans and data sheets, before anything is fetched; none of it was measured.
"""

from pipeline.doctor.bases import GB, GIB, LEAST_HOST, BaseEstimate, estimate_bases, plans_of_bases, total_hours
from pipeline.doctor.disk import disk_needs
from pipeline.doctor.plans import RunPlan
from pipeline.models.cards import CARDS
from pipeline.params.schema import Params

SIZES = {"24 GB": CARDS["3090"], "48 GB": CARDS["a6000"], "80 GB": CARDS["h100"]}


def card_tables(params: Params, studies: list[str]) -> tuple[str, str]:
    """Hours, host memory and disk by study; what the plans do by base.

    Raises as `plan_runs` does.
    """
    heads = [f"{size} ({card.name.removesuffix(' 80GB')})" for size, card in SIZES.items()]
    whole, parts = [], []
    for name in studies:
        plans = {size: plans_of_bases(params, name, card, LEAST_HOST) for size, card in SIZES.items()}
        bases = {size: estimate_bases(params, name, card, plans[size]) for size, card in SIZES.items()}
        disk = sum(need.size for need in disk_needs(params, name)) / GB
        runs = sum(base.runs for base in bases["24 GB"])
        whole.append([name, str(runs), f"{disk:.0f} GB", *(_study(bases[size]) for size in SIZES)])
        order = [base.base for base in bases["24 GB"]]
        parts += [[name, base, *(_plans(plans[size][base]) for size in SIZES)] for base in order]
    return _table(["study", "runs on a GPU", "disk", *heads], whole), _table(["study", "base", *heads], parts)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def _study(bases: list[BaseEstimate]) -> str:
    """Hours in all, host memory, and how many runs are in neither."""
    low, high = (f"{hours:.0f}" if hours >= 10 else f"{hours:.1f}" for hours in total_hours(bases))
    left_out = sum(len(base.refused) for base in bases)
    missing = f", without {left_out} runs" if left_out else ""
    return f"{low} to {high} h, {max(base.host_bytes for base in bases) / GIB:.0f} GiB{missing}"


def _plans(plans: list[RunPlan]) -> str:
    """Rows, and answers, at once, of the runs that need the most host memory, and what they keep there."""
    training = [plan.training for plan in plans if plan.training is not None and plan.trouble is None]
    sampling = [plan.sampling for plan in plans if plan.sampling is not None and plan.trouble is None]
    rows = answers = "none"
    if training:
        hard = min(training, key=lambda plan: (-plan.host, plan.micro_batch))
        rows = f"{hard.micro_batch}" + (f" ({hard.host / GIB:.1f} GiB)" if hard.host else "")
    if sampling:
        most = min(sampling, key=lambda plan: (-plan.host, plan.batch))
        layers = f" ({most.streamed} layer{'s' * (most.streamed > 1)}, {most.host / GIB:.1f} GiB)"
        answers = f"{most.batch}" + (layers if most.host else "")
    return f"{rows}; {answers}"
