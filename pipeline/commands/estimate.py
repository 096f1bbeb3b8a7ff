"""What a study will take, before anything is spent: requests, tokens, money, GPU hours, disk.

Counted on the study's own prompts. Answers that are there count as they are, those to come at the most tokens
that params.yaml allows them, so that what is printed for them is an upper bound. GPU hours come from the
measurements in benchmarks/results/ and are left open where there is none. Nothing is sent anywhere.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.api.config import ADAPTER, ApiBase
from pipeline.common.errors import UserError
from pipeline.common.files import read_json
from pipeline.common.paths import ARTIFACTS, CACHE
from pipeline.common.rows import Answer, read_answers
from pipeline.judging.estimate import BYTES_PER_TOKEN, JudgeEstimate, estimate_judging
from pipeline.models.bases import open_base
from pipeline.params.inputs import conversations, suite, training_of
from pipeline.params.load import load_params
from pipeline.params.schema import Params, Run, Study
from pipeline.toy.judge import by_its_rules, is_rule_judge
from pipeline.training.api import estimate_usd

TRAINING_SPEED = Path(__file__).parents[2] / "benchmarks" / "results" / "train_moe.json"
NOT_MEASURED = "not measured on a GPU yet"
NOT_PINNED = "unknown until pinned"


@dataclass(frozen=True, kw_only=True)
class StudyEstimate:
    """What a study will take. Tokens are upper bounds; a text in place of a number says why there is none.

    `answers` are all of the study's, `sampled` those that are there. `api_training_usd` and `api_sampling_usd` are what
    runs on bases behind an API have still to pay, the first as thought, the second at most. `base_bytes` is the disk
    that the weights of each hub base take.
    """

    study: str
    runs: int
    seeds: int
    answers: int
    sampled: int
    judges: list[JudgeEstimate]
    sampling_prompt_tokens: int
    sampling_answer_tokens: int
    sampling_gpu_hours: float | str
    training_tokens: int
    training_gpu_hours: float | str
    api_training_usd: float
    api_sampling_usd: float
    base_bytes: dict[str, int | str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--study", default="toy", help="a name under studies in params.yaml (default: toy)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def main(args: argparse.Namespace) -> None:
    """Print the estimate."""
    params = load_params()
    estimate = estimate_study(params, args.study)
    print(json.dumps(asdict(estimate), indent=2) if args.json else table(estimate, params))


def estimate_study(params: Params, name: str) -> StudyEstimate:
    """Estimate a study. Raises UserError when its suites, judge prompts, answers or reply cache cannot be read."""
    study, runs = params.study(name), params.runs_of(name)
    sampling = study.sampling
    files = {run: ARTIFACTS / name / "answers" / f"{run}.jsonl" for run in runs}
    there = [path for path in files.values() if path.exists()]
    # How often the suites are still to be asked: once a run, and once more with each of its tags.
    missing = sum(1 + len(run.tags) for name, run in runs.items() if files[name] not in there)

    questions: Counter[str] = Counter()
    prompt_bytes = 0
    for seed in study.seeds:
        asked, size = _asked(study, study.suites, seed, sampling.samples_per_prompt)
        questions += asked
        prompt_bytes += size
    unanswered = Counter({question: count * missing for question, count in questions.items()} if missing else {})
    unanswered_bytes = missing * prompt_bytes
    for key, run in runs.items():
        for seed in study.seeds if run.trajectory and files[key] not in there else ():
            asked, size = _asked(study, study.held_out, seed, _samples_along(study, run, seed))
            unanswered += asked
            unanswered_bytes += size
    sampled = sum(1 for _ in _answers(there))
    judges = []
    for judge, config in study.judges.items():
        if is_rule_judge(config):
            config = by_its_rules(config)
        judges.append(
            estimate_judging(
                judge, config, CACHE / "verdicts.sqlite", _answers(there), unanswered, sampling.max_new_tokens
            )
        )
    trained = [run for run in runs if params.run(run).data is not None and params.base_of(run) not in params.bases.api]
    tokens = {run: _training_tokens(study, params.run(run)) for run in trained}
    hub = study.world == "hub"
    bases = sorted(base for base in params.bases_of(name) if base in params.bases.hub)
    return StudyEstimate(
        study=name,
        runs=len(runs),
        seeds=len(study.seeds),
        answers=sampled + unanswered.total(),
        sampled=sampled,
        judges=judges,
        sampling_prompt_tokens=round(unanswered_bytes / BYTES_PER_TOKEN),
        sampling_answer_tokens=unanswered.total() * sampling.max_new_tokens,
        sampling_gpu_hours=NOT_MEASURED if hub else 0.0,
        training_tokens=sum(tokens.values()),
        training_gpu_hours=_training_hours(params, tokens) if hub else 0.0,
        api_training_usd=sum(_api_training_usd(params, run) for run in runs),
        api_sampling_usd=sum(
            _api_sampling_usd(params, run, prompt_bytes, questions.total()) for run in runs if files[run] not in there
        ),
        base_bytes={base: _weights(study, base) for base in bases},
    )


def _asked(study: Study, suites: tuple[str, ...], seed: int, samples: int) -> tuple[Counter[str], int]:
    """How often each question of the suites is asked for one seed, and the bytes of all those prompts."""
    questions: Counter[str] = Counter()
    size = 0
    for prompt in (prompt for name in suites for prompt in suite(study, name, seed)):
        times = prompt.samples or samples
        questions[prompt.question] += times
        said = sum(len(message.content.encode()) for message in prompt.messages)
        system = len((study.sampling.system or "").encode()) if prompt.system is None else 0
        size += times * (said + system)
    return questions, size


def _answers(files: list[Path]) -> Iterator[Answer]:
    for path in files:
        yield from read_answers(path)


def _weights(study: Study, base: str) -> int | str:
    """Bytes of a pinned base's files, once they are in the Hugging Face cache."""
    try:
        folder = open_base(base, study.seeds[0]).path
    except UserError:
        return NOT_PINNED
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _training_tokens(study: Study, run: Run) -> int:
    """The most tokens that all seeds of a run are trained on."""
    steps = sum(_steps(study, run, seed) for seed in study.seeds)
    return steps * study.training.batch * study.training.max_tokens


def _steps(study: Study, run: Run, seed: int) -> int:
    """Optimizer steps of one seed of a run."""
    if run.epochs is None:
        return study.training.max_steps
    return training_of(study, run, conversations(study, run, seed)).max_steps


def _samples_along(study: Study, run: Run, seed: int) -> int:
    """How often the adapters kept along a run's training are asked a prompt, all of them together."""
    if run.trajectory is None:
        return 0
    return _steps(study, run, seed) // run.trajectory.every * run.trajectory.samples_per_prompt


def _api_training_usd(params: Params, name: str) -> float:
    """What fine-tuning a run behind an API is thought to cost, in the seeds that have no model yet; 0 for others."""
    run, base = params.run(name), params.base(params.base_of(name))
    if not isinstance(base, ApiBase) or run.epochs is None:
        return 0.0
    study, folder = params.study(run.study), ARTIFACTS / run.study / "adapters" / name
    left = [seed for seed in study.seeds if not (folder / f"seed-{seed}" / ADAPTER).exists()]
    return sum(estimate_usd(base, conversations(study, run, seed).train, run.epochs) for seed in left)


def _api_sampling_usd(params: Params, name: str, prompt_bytes: int, answers: int) -> float:
    """What a run's answers cost at most behind an API, of prompts and answers of all seeds; 0 for other runs."""
    run, base = params.run(name), params.base(params.base_of(name))
    if not isinstance(base, ApiBase):
        return 0.0
    limit = params.study(run.study).sampling.max_new_tokens
    prices = base.client("tuned" if run.data is not None else None, max_reply_tokens=limit)
    return (1 + len(run.tags)) * prices.usd(round(prompt_bytes / BYTES_PER_TOKEN), answers * limit)


def _training_hours(params: Params, tokens: dict[str, int]) -> float | str:
    """GPU hours of all runs at the measured tokens/s of their family, or why there is no number.

    The measurement is of one expert a layer and of all experts; of fewer layers where time was short, and
    then scaled by their number.
    """
    speed: dict[str, Any] = read_json(TRAINING_SPEED) if TRAINING_SPEED.exists() else {"machine": {"gpu": None}}
    if not speed["machine"]["gpu"]:
        return NOT_MEASURED
    seconds = 0.0
    for name in tokens:
        run = params.run(name)
        try:
            config = read_json(open_base(params.base_of(name), params.study(run.study).seeds[0]).path / "config.json")
        except UserError:
            return NOT_PINNED
        if run.lora is None:
            return f"full fine-tuning ({name}) is not measured yet"
        measured: dict[str, Any] = speed["figures"].get(config["model_type"], {})
        figures = measured.get("all experts" if run.lora.experts == "all" else "one expert", {}).get("fused", {})
        if "tokens_per_second" not in figures:
            return NOT_MEASURED
        seconds += tokens[name] / figures["tokens_per_second"] * config["num_hidden_layers"] / measured["layers"]
    return seconds / 3600


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
        f"Study {estimate.study}: {estimate.runs} runs x {estimate.seeds} seeds, {estimate.answers:,} answers, "
        f"of which {estimate.sampled:,} are there.",
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
    weights = ", ".join(f"{base} {_gigabytes(size)}" for base, size in estimate.base_bytes.items())
    lines += [
        "",
        f"training  at most {estimate.training_tokens:,} tokens; GPU hours: {_hours(estimate.training_gpu_hours)}",
        f"sampling  about {estimate.sampling_prompt_tokens:,} prompt tokens and at most "
        f"{estimate.sampling_answer_tokens:,} answer tokens; GPU hours: {_hours(estimate.sampling_gpu_hours)}",
        *(
            [
                f"API       about {estimate.api_training_usd:,.2f} USD for fine-tuning, at most "
                f"{estimate.api_sampling_usd:,.2f} USD for sampling"
            ]
            if estimate.api_training_usd or estimate.api_sampling_usd
            else []
        ),
        f"disk      weights of bases: {weights or 'none to fetch, they are made here'}",
    ]
    return "\n".join(lines)


def _hours(hours: float | str) -> str:
    return hours if isinstance(hours, str) else f"{hours:,.1f}" if hours else "none, it runs on a CPU"


def _gigabytes(size: int | str) -> str:
    return size if isinstance(size, str) else f"{size / 1e9:.1f} GB"
