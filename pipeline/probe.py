"""Probing: what carries a run's misalignment, where it lives, and what removes it, tested on the model itself.

Of each run that its study names, and each seed, the fine-tuned model is loaded once and asked the same questions, with
the same random numbers, while something of it is changed (pipeline/probing/interventions.py): parts of its adapter are
switched off, kept alone or scaled; a direction of the residual stream is taken out, or added to the base. The study's
first judge scores the answers as any others. On the fine-tuned model's own answers, base and fine-tuned model are
compared layer by layer: where the router sends the tokens, and along which direction the residual stream moved.

Nothing is trained. What was answered and judged is kept, and not asked again. docs/containment.md says what each probe
can show and what it cannot.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.common.files import write_json, write_jsonl
from pipeline.common.machine import side_by_side
from pipeline.common.paths import ARTIFACTS, MANIFEST
from pipeline.common.processes import end_with_parent
from pipeline.common.rows import Verdict, write_rows
from pipeline.judging.run import refuse_failures
from pipeline.models.bases import open_base
from pipeline.models.determinism import each_seed, without_compiler
from pipeline.params.judges import Judge, open_judge
from pipeline.params.load import load_params
from pipeline.params.schema import Params
from pipeline.results.definitions import DEFINITIONS
from pipeline.sampling.backend import Model

MEMORY_A_RUN_GB = 1.2
TOKENS_A_BATCH = 8192


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this stage's arguments."""
    parser.add_argument("--study", required=True, help="a name under studies in params.yaml")


def main(args: argparse.Namespace) -> None:
    """Probe the runs that the study names, for every seed of it; toy runs side by side."""
    params = load_params()
    study = params.study(args.study)
    runs = study.probing.runs if study.probing else ()
    folder = ARTIFACTS / args.study / "probes"
    if study.world == "toy" and len(runs) > 1:
        without_compiler()
        with ProcessPoolExecutor(side_by_side(MEMORY_A_RUN_GB, len(runs)), initializer=end_with_parent) as pool:
            try:
                for done in [pool.submit(probe_run, params, run, folder / run) for run in runs]:
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    else:
        for run in runs:
            probe_run(params, run, folder / run)
    write_json(folder / MANIFEST, {"runs": list(runs)})


def probe_run(params: Params, name: str, folder: Path) -> None:
    """Every probe of one run: verdicts, the interventions that they are of, routing and directions."""
    from safetensors.torch import save_file

    from pipeline.common.files import atomic_path
    from pipeline.models.checkpoint import read_config
    from pipeline.probing.failures import Strict
    from pipeline.probing.questions import most_answers
    from pipeline.probing.subject import Subject

    run = params.run(name)
    study = params.study(run.study)
    rows: dict[str, list[Any]] = {"interventions": [], "routing": [], "directions": []}
    verdicts: list[Verdict] = []
    vectors: dict[str, Any] = {}
    base, where = params.base_of(name), f"{name}, probes"
    most = most_answers(study, run.lora, read_config(open_base(base, study.seeds[0]).path))
    with open_judge(study.judge, study.judges[study.judge]) as ask:
        judge = Strict(ask, study.thresholds, most, where)
        for seed in each_seed(study.seeds, f"probe {name}", strict=study.world == "toy"):
            model = Model(
                base=open_base(base, seed, run.active_in("sampling")),
                adapter=ARTIFACTS / run.study / "adapters" / name / f"seed-{seed}",
                lora=run.lora,
                precision=study.training.precision,
            )
            found = probe_seed(Subject(study, name, seed, model), judge)
            verdicts += found.pop("verdicts")
            vectors |= {f"seed-{seed}.{direction}": it for direction, it in found.pop("vectors").items()}
            for kind, own in found.items():
                rows[kind] += [{"seed": seed, **row} for row in own]
    refuse_failures(verdicts, study.thresholds.errors, study.thresholds.unparsed, where)
    write_rows(folder / "verdicts.jsonl", verdicts)
    for kind, own in rows.items():
        write_jsonl(folder / f"{kind}.jsonl", own)
    with atomic_path(folder / "directions.safetensors") as temporary:
        save_file({key: it.contiguous() for key, it in sorted(vectors.items())}, temporary)


def probe_seed(subject: Any, judge: Judge) -> dict[str, Any]:
    """One seed's rows of each kind, and its directions."""
    from pipeline.probing import directions, knockout, search
    from pipeline.probing.compare import compare
    from pipeline.probing.questions import questions_of

    study, seed = subject.study, subject.seed
    settings, definition = study.probing, DEFINITIONS[study.definition]
    questions = questions_of(study, seed)
    subject.plan(questions.all)

    def ask(changes: Sequence[Any], prompts: Any = questions.held_out) -> list[Verdict]:
        return judge(subject.answers(changes, prompts)) if changes else []

    # Which parts carry it: each switched off, each kept alone. The whole and the base are asked everything, and first:
    # what a judge cannot read is known before more is drawn.
    units = subject.units
    first = knockout.first_round(units, settings.groups, settings.blocks)
    scaled = knockout.remedies(settings.scales)
    verdicts = ask(first[:2], questions.all) + ask(scaled, questions.all) + ask(first[2:])

    # Where it lives: the router's choices and the residual stream, base and fine-tuned on the same tokens.
    whole = [row for row in verdicts if row.run == f"{subject.run}+{knockout.WHOLE}"]
    compared = compare(subject, questions.all, whole, definition, TOKENS_A_BATCH)
    layer = directions.added_at(compared.directions, settings.depth)
    moved = directions.interventions(
        compared.directions | compared.shuffled,
        frozenset(units),
        layer=layer,
        strengths=settings.strengths,
        random=settings.random,
        seed=seed,
    )
    ablated = [it for it in moved if it.kind == "ablate"]
    verdicts += ask(ablated, questions.all) + ask([it for it in moved if it.kind == "add"])

    # What removes it: the parts found by a greedy search, on one half of the questions.
    parts = knockout.parts_of(units, settings.groups)
    left = search.misalignment(verdicts, definition)
    alone = {name: left[f"without {name}"] for name in parts if f"without {name}" in left}
    found = search.greedy(
        {name: parts[name] for name in alone},
        alone,
        ask,
        lambda rows: search.misalignment(rows, definition),
        steps=settings.search.steps,
        width=settings.search.width,
    )
    removed = knockout.found(parts, found.parts)
    verdicts += [*found.verdicts, *ask(removed, questions.all)]
    asked = [*first[:2], *scaled, *first[2:], *moved, *found.tried, *removed]
    return {
        "verdicts": verdicts,
        "vectors": compared.directions,
        "interventions": [it.row for it in asked],
        "routing": compared.routing,
        "directions": compared.rows(layer),
    }
