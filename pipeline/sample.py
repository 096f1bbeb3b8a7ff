"""Sampling: every model of a study is asked the same suites in the same way.

A run's base, with the run's adapter as it was trained where it has one, completes each prompt of each suite
`samples_per_prompt` times, for every seed; where the run trained every parameter, its own model does. The base is
held in the precision that it was fine-tuned in and routed as the run says, with adapter and without, and loaded once.
The study's system prompt stands before prompts that bring none, and thinking is switched off as far as the model's chat
template allows. An answer is the completion's tokens, decoded, without what was thought before it; both are kept. Where
a run has a trajectory, the adapters that were kept along training are asked the held-out suites too. A model behind an
API is asked there.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from pipeline.api.config import ApiBase, tuned_model
from pipeline.common.ledger import note
from pipeline.common.paths import ARTIFACTS, CACHE, kept_along
from pipeline.common.rows import Answer, write_rows
from pipeline.data.prompts import Prompt
from pipeline.models.bases import open_base, open_checkpoint
from pipeline.models.determinism import each_seed, without_compiler
from pipeline.params.inputs import check_kept_out, suite, suites_asked
from pipeline.params.load import load_params
from pipeline.params.schema import Params
from pipeline.sampling.answers import answer_rows, requests_of
from pipeline.sampling.api import answers
from pipeline.sampling.backend import Backend, Model
from pipeline.sampling.cache import complete_all
from pipeline.sampling.choose import start_backend
from pipeline.sampling.key import identity
from pipeline.sampling.settings import Sampling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this stage's arguments."""
    parser.add_argument("--run", required=True, help="a name under runs in params.yaml")


def main(args: argparse.Namespace) -> None:
    """Sample the run's answers for every seed of it."""
    params = load_params()
    run = params.run(args.run)
    study = params.study(run.study)
    folder = ARTIFACTS / run.study
    path = folder / "answers" / f"{args.run}.jsonl"
    if isinstance(params.base(params.base_of(args.run)), ApiBase):
        write_rows(path, ask_run(params, args.run, folder / "adapters" / args.run))
        return
    if study.world == "toy":
        without_compiler()

    for link in params.chain(args.run) if any(own.held_out for own in study.own_suites) else ():
        check_kept_out(study, params.run(link), study.seeds[0], folder / "adapters" / link, link)
    backend = start_backend(study.sampling)
    rows: list[Answer] = []
    active = run.active_in("sampling")
    for seed in each_seed(params.seeds_of(args.run), f"sample {args.run}", strict=study.world == "toy"):
        trained = folder / "adapters" / args.run / f"seed-{seed}"
        model = Model(
            base=open_checkpoint(trained, active) if run.whole else open_base(params.base_of(args.run), seed, active),
            adapter=trained if run.lora else None,
            lora=run.lora,
            precision=study.training.precision,
        )
        note(backend=backend.version())
        prompts = [prompt for name in suites_asked(study, run) for prompt in suite(study, name, seed)]
        rows += sample_answers(backend, model, prompts, study.sampling, args.run, seed)
        if run.trajectory is not None:
            settings = study.sampling.model_copy(update={"samples_per_prompt": run.trajectory.samples_per_prompt})
            held_out = [prompt for name in study.held_out for prompt in suite(study, name, seed)]
            prompts = [replace(prompt, samples=None) for prompt in held_out]
            for step, adapter in kept_along(trained):
                model = replace(model, adapter=adapter)
                rows += sample_answers(backend, model, prompts, settings, args.run, seed, step)
    write_rows(path, rows)


def sample_answers(
    backend: Backend,
    model: Model,
    prompts: list[Prompt],
    settings: Sampling,
    run: str,
    seed: int,
    step: int | None = None,
) -> list[Answer]:
    """Answers of one seed's model to every prompt, `samples_per_prompt` times each, in order.

    step: where along training the model's adapter was kept, None for a run's result.

    Killed at any moment and called again, it asks only what has no answer yet. Raises UserError when the backend is
    not installed, cannot hold the model, or does not serve the adapter (pipeline/sampling/canary.py).
    """
    requests = requests_of(run, seed, prompts, settings.samples_per_prompt)
    completions = complete_all(
        requests,
        backend.together(model, requests),
        identity(backend, model, settings),
        CACHE / "answers",
        lambda batches: backend.complete(model, batches),
    )
    return answer_rows(run, seed, requests, completions, step)


def ask_run(params: Params, name: str, folder: Path) -> list[Answer]:
    """Every seed's answers of the run, whose stage left its models' names in `folder`. See `answers`."""
    run, base_name = params.run(name), params.base_of(name)
    study, base = params.study(run.study), params.base(base_name)
    assert isinstance(base, ApiBase)
    rows: list[Answer] = []
    for seed in study.seeds:
        tuned = tuned_model(folder / f"seed-{seed}") if run.data is not None else None
        prompts = [prompt for asked in suites_asked(study, run) for prompt in suite(study, asked, seed)]
        rows += answers(base_name, base, tuned, prompts, study.sampling, name, seed, CACHE / "verdicts.sqlite")
    return rows
