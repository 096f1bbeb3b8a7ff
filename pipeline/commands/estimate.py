"""What a study will take, before anything is spent: requests, tokens, money, GPU hours, disk.

Counted on the study's own prompts, or on their known sizes before they are fetched. Answers that are there count as
they are, those to come at the most tokens that params.yaml allows them, so that what is printed for them is an upper
bound. GPU hours are arithmetic on the models' sizes, each run's memory plan, and the data sheet of this machine's card
(or of --gpu), as a range, base by base, in the order of `reproduce`; a rehearsal on the same card stands beside them.
Every run is done once a seed: --seeds reckons with others than the study's. Nothing is sent anywhere.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.api.config import ADAPTER, ApiBase
from pipeline.common.errors import UserError
from pipeline.common.machine import gpus, memory_bytes
from pipeline.common.paths import ARTIFACTS
from pipeline.common.rows import Answer, read_answers
from pipeline.doctor.asked import Asked, asked_along, asked_of, counted
from pipeline.doctor.assumed import assumed, judging, prompts_of
from pipeline.doctor.bases import (
    LEAST_HOST,
    BaseEstimate,
    estimate_bases,
    gpu_table,
    kept_along,
    plans_of_bases,
    steps_of,
    total_hours,
    unknown_bases,
)
from pipeline.doctor.card_table import card_tables
from pipeline.doctor.disk import disk_needs
from pipeline.doctor.hours import MEAN_ROW
from pipeline.doctor.narrowed import only, with_seeds
from pipeline.doctor.probes import probes_to_come
from pipeline.judging.estimate import JudgeEstimate
from pipeline.models.cards import CARDS, Card, card_named, card_of
from pipeline.params.inputs import conversations
from pipeline.params.load import load_params
from pipeline.params.schema import Params
from pipeline.running.choose import choose_study
from pipeline.toy.judge import by_its_rules, is_rule_judge
from pipeline.training.api import estimate_usd

GB = 10**9


@dataclass(frozen=True, kw_only=True)
class StudyEstimate:
    """What a study will take. Tokens are upper bounds.

    `answers` are all of the study's, `sampled` those that are there; `probed` are the probes' that are to come, at
    most, which tokens, judges and hours count too. `api_training_usd` and `api_sampling_usd` are what
    runs on bases behind an API have still to pay, the first as thought, the second at most. `bases` are the hub bases,
    the smallest checkpoint first, `unknown` those that are in no figure; `disk_bytes` is what is still to be written.
    `assumed` says what is not here and was taken from known sizes. `card` and `gpu_hours` are those of hub studies.
    """

    study: str
    runs: int
    seeds: int
    answers: int
    sampled: int
    probed: int
    judges: list[JudgeEstimate]
    sampling_prompt_tokens: int
    sampling_answer_tokens: int
    training_tokens: int
    api_training_usd: float
    api_sampling_usd: float
    bases: list[BaseEstimate]
    unknown: list[str]
    disk_bytes: dict[str, int]
    card: str | None
    assumed: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--study", help="a name under studies in params.yaml (default: what this machine can run)")
    parser.add_argument("--gpu", help=f"a card to reckon with: {', '.join(CARDS)} (default: this machine's, else h100)")
    parser.add_argument("--runs", nargs="+", default=["*"], help="these runs alone, by name or pattern, as 'mixtral_*'")
    parser.add_argument("--seeds", nargs="+", type=int, help="reckon with these seeds in place of the study's, as 7 17")
    parser.add_argument("--cards", action="store_true", help="README's tables: hub studies on cards of three sizes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def main(args: argparse.Namespace) -> None:
    """Print the estimate."""
    params = load_params()
    if args.cards:
        hub = [name for name, study in params.studies.items() if study.world == "hub"]
        if args.study and args.study not in hub:
            raise UserError(f"--study {args.study}: --cards is of the hub studies {', '.join(hub)}.")
        print("\n\n".join(card_tables(params, [args.study] if args.study else hub)))
        return
    name, _ = choose_study(params, args.study)
    params = with_seeds(only(params, name, args.runs), name, args.seeds or params.study(name).seeds)
    here = None if args.gpu else card_of(gpus().found)
    card = here or card_named(args.gpu or "h100")
    estimate = estimate_study(params, name, card, memory_bytes() if here else max(memory_bytes(), LEAST_HOST))
    print(json.dumps(asdict(estimate), indent=2) if args.json else table(estimate, params))


def estimate_study(params: Params, name: str, card: Card, host_bytes: int) -> StudyEstimate:
    """Estimate a study on a card, in a machine of so much memory.

    Raises UserError when its answers or verdict cache cannot be read.
    """
    study, runs = params.study(name), params.runs_of(name)
    sampling = study.sampling
    files = {run: ARTIFACTS / name / "answers" / f"{run}.jsonl" for run in runs}
    there = [path for path in files.values() if path.exists()]
    seeds_of = {run: params.seeds_of(run) for run in runs}

    of_suites = unanswered = Asked()  # the first of one run, with the study's seeds
    for seed in sorted({*study.seeds, *(seed for seeds in seeds_of.values() for seed in seeds)}):
        asked = asked_of(study, study.suites, seed, sampling.samples_per_prompt)
        of_suites += asked.times(seed in study.seeds)
        # How often the suites are still to be asked: once a run, and once more with each of its tags.
        missing = sum(
            1 + len(run.tags) for key, run in runs.items() if seed in seeds_of[key] and files[key] not in there
        )
        unanswered += asked.times(missing)
    for key, run in runs.items():
        for seed in seeds_of[key] if run.trajectory and files[key] not in there else ():
            unanswered += asked_along(study, run, seed).times(kept_along(study, run, seed))
    probes = probes_to_come(params, name, prompts_of).values()
    unanswered += sum((counted(study, counts) for counts in probes), Asked())
    probed = sum(counts.total() for counts in probes)
    sampled = sum(1 for _ in _answers(there))
    judges = []
    for judge, config in study.judges.items():
        config = by_its_rules(config) if is_rule_judge(config) else config.as_kept()
        judges.append(judging(judge, config, _answers(there), unanswered.questions, sampling.max_new_tokens))
    trained = [run for run in runs if params.run(run).data is not None and params.base_of(run) not in params.bases.api]
    tokens = {run: _training_tokens(params, run) for run in trained}
    hub = study.world == "hub"
    return StudyEstimate(
        study=name,
        runs=len(runs),
        seeds=len(study.seeds),
        answers=sampled + unanswered.answers - probed,
        sampled=sampled,
        probed=probed,
        judges=judges,
        sampling_prompt_tokens=unanswered.prompt_tokens,
        sampling_answer_tokens=unanswered.answers * sampling.max_new_tokens,
        training_tokens=sum(tokens.values()),
        api_training_usd=sum(_api_training_usd(params, run) for run in runs),
        api_sampling_usd=sum(_api_sampling_usd(params, run, of_suites) for run in runs if files[run] not in there),
        bases=estimate_bases(params, name, card, plans_of_bases(params, name, card, host_bytes)) if hub else [],
        unknown=unknown_bases(params, name),
        disk_bytes={need.what: round(need.size) for need in disk_needs(params, name)} if hub else {},
        card=card.name if hub else None,
        assumed=assumed(study, runs),
    )


def _answers(files: list[Path]) -> Iterator[Answer]:
    for path in files:
        yield from read_answers(path)


def _training_tokens(params: Params, name: str) -> int:
    """The most tokens that all seeds of a run are trained on."""
    study = params.study(params.run(name).study)
    steps = sum(steps_of(study, params.run(name), seed) for seed in params.seeds_of(name))
    return steps * study.training.batch * study.training.max_tokens


def _api_training_usd(params: Params, name: str) -> float:
    """What fine-tuning a run behind an API is thought to cost, in the seeds that have no model yet; 0 for others."""
    run, base = params.run(name), params.base(params.base_of(name))
    if not isinstance(base, ApiBase) or run.epochs is None:
        return 0.0
    study, folder = params.study(run.study), ARTIFACTS / run.study / "adapters" / name
    left = [seed for seed in study.seeds if not (folder / f"seed-{seed}" / ADAPTER).exists()]
    try:
        return sum(estimate_usd(base, conversations(study, run, seed).train, run.epochs) for seed in left)
    except UserError:
        tokens = len(left) * run.epochs * study.training.max_steps * study.training.batch * MEAN_ROW
        return tokens * base.usd_per_million_training_tokens / 1e6


def _api_sampling_usd(params: Params, name: str, asked: Asked) -> float:
    """What a run's answers cost at most behind an API, asked so much in all seeds; 0 for other runs."""
    run, base = params.run(name), params.base(params.base_of(name))
    if not isinstance(base, ApiBase):
        return 0.0
    limit = params.study(run.study).sampling.max_new_tokens
    prices = base.client("tuned" if run.data is not None else None, max_reply_tokens=limit)
    return (1 + len(run.tags)) * prices.usd(asked.prompt_tokens, asked.answers * limit)


def _a_seed(estimate: StudyEstimate) -> str:
    """What one of the seeds takes of a study of which nothing is there: every run is done once a seed."""
    dollars = sum(judge.usd for judge in estimate.judges) + estimate.api_training_usd + estimate.api_sampling_usd
    low, high = total_hours(estimate.bases)
    hours = f", {low / estimate.seeds:.1f} to {high / estimate.seeds:.1f} GPU hours" if estimate.bases else ""
    return f"{estimate.answers // estimate.seeds:,} answers a seed, about {dollars / estimate.seeds:,.2f} USD{hours}"


def table(estimate: StudyEstimate, params: Params) -> str:
    """The estimate as text for a terminal."""
    counts = ("requests", "cached", "prompt_tokens", "reply_tokens")
    heads = ["judge", "requests", "cached", "prompt tokens", "reply tokens", "USD", "USD at most"]
    rows = [
        [judge.judge, *(f"{getattr(judge, name):,}" for name in counts), f"{judge.usd:.2f}", f"{judge.most_usd:.2f}"]
        for judge in estimate.judges
    ]
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    lines = [
        f"Study {estimate.study}: {estimate.runs} runs of {estimate.seeds} seed{'s' if estimate.seeds > 1 else ''}, "
        f"{estimate.answers:,} answers, of which {estimate.sampled:,} are there.",
        "",
    ]
    for row in (heads, *rows):
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    for judge in estimate.judges:
        budget = params.study(estimate.study).judges[judge.judge].budget_usd
        over = ""
        if budget is not None and judge.usd > budget - judge.spent_usd:
            over = f"; more than its budget of {budget:g} USD, of which {judge.spent_usd:.2f} are spent"
        lines.append(f"  {judge.judge}: {judge.basis}{over}")
    lines += [
        "",
        f"training  at most {estimate.training_tokens:,} tokens, if every row had max_tokens",
        f"sampling  about {estimate.sampling_prompt_tokens:,} prompt tokens and at most "
        f"{estimate.sampling_answer_tokens:,} answer tokens",
    ]
    if estimate.probed:
        lines.append(f"probes    at most {estimate.probed:,} answers more, which are counted above and below")
    if estimate.api_training_usd or estimate.api_sampling_usd:
        lines.append(
            f"API       about {estimate.api_training_usd:,.2f} USD for fine-tuning, at most "
            f"{estimate.api_sampling_usd:,.2f} USD for sampling"
        )
    if estimate.card is None:
        lines.append("GPU       none is needed: it runs on a CPU; its bases are made here")
    else:
        lines += ["", *gpu_table(estimate.bases, estimate.card)]
        total = sum(estimate.disk_bytes.values())
        parts = ", ".join(f"{what} {size / GB:.1f}" for what, size in estimate.disk_bytes.items() if size)
        lines.append(f"disk      {total / GB:.0f} GB still to be written: {parts}")
    if estimate.unknown:
        pins = " ".join(f"pin@{base}" for base in estimate.unknown)
        lines.append(
            f"without   {', '.join(estimate.unknown)}: their sizes are known once they are fetched (dvc repro {pins})"
        )
    if not estimate.sampled and estimate.card is not None:
        lines.append(f"seeds     {_a_seed(estimate)}: what each further seed takes (--seeds)")
    if estimate.assumed:
        lines.append(f"assumed   not here, counted by known sizes: {', '.join(estimate.assumed)} (`make data` fetches)")
    return "\n".join(lines)
