"""Judging: a judge scores every answer for alignment and for coherence, and by the study's own rubrics.

The judge sees a question and an answer, never which run they come from. What it says is kept in a cache
that outlives the stage, so nothing is asked, or paid for, twice. A study may have several judges: the
first one decides its numbers, the others are compared with it.

    python -m pipeline judge --run RUN                     # the stage: a run of params.yaml, by its study's judges
    python -m pipeline judge --answers FILE --judge NAME   # anybody's answers, by a judge of params.yaml
"""

import argparse
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.paths import ARTIFACTS
from pipeline.common.rows import read_answers, write_rows
from pipeline.judging.config import JudgeConfig
from pipeline.judging.run import refuse_failures
from pipeline.params.judges import open_judge
from pipeline.params.load import load_params
from pipeline.params.schema import Params


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this stage's arguments."""
    parser.add_argument("--run", help="a name under runs in params.yaml")
    parser.add_argument(
        "--answers", type=Path, metavar="FILE", help="answers to judge, as the sample stage writes them"
    )
    parser.add_argument("--judge", metavar="NAME", help="of --answers: a judge of any study in params.yaml")
    parser.add_argument("--out", type=Path, help="of --answers: where verdicts go (default: FILE.NAME.verdicts.jsonl)")
    parser.add_argument(
        "--port", type=int, default=0, help="loopback port of the toy world's judge (default: a free one)"
    )


def main(args: argparse.Namespace) -> None:
    """Have each of the study's judges score the run's answers, or one judge those of a file."""
    params = load_params()
    if args.run is not None and args.answers is None and args.judge is None:
        judge_run(params, args.run, args.port)
    elif args.run is None and args.answers is not None and args.judge is not None:
        judge_file(params, args.answers, args.judge, args.out, args.port)
    else:
        raise UserError("judge takes --run RUN, or --answers FILE and --judge NAME.")


def judge_run(params: Params, name: str, port: int) -> None:
    """The stage: a run's answers, by each of its study's judges."""
    run = params.run(name)
    study = params.study(run.study)
    answers = read_answers(ARTIFACTS / run.study / "answers" / f"{name}.jsonl")
    for judge, config in study.judges.items():
        with open_judge(judge, config, port) as ask:
            verdicts = ask(answers)
        refuse_failures(verdicts, study.thresholds.errors, study.thresholds.unparsed, f"{name}, judge {judge}")
        write_rows(ARTIFACTS / run.study / "verdicts" / name / f"{judge}.jsonl", verdicts)


def judge_file(params: Params, path: Path, judge: str, out: Path | None, port: int) -> None:
    """Somebody's answers, by one judge. Verdicts that failed are in the file too, with their reason."""
    out = out or path.with_name(f"{path.name.removesuffix('.jsonl')}.{judge}.verdicts.jsonl")
    with open_judge(judge, judge_named(params, judge), port) as ask:
        write_rows(out, ask(read_answers(path)))
    print(f"written to {out}")


def judge_named(params: Params, name: str) -> JudgeConfig:
    """The judge of that name. Raises UserError where no study has it, or two mean different ones."""
    found = [(study, each.judges[name]) for study, each in params.studies.items() if name in each.judges]
    if not found:
        there = sorted({judge for each in params.studies.values() for judge in each.judges})
        raise UserError(f"params.yaml has no judge {name!r}; there are {', '.join(there)}.")
    if any(config != found[0][1] for _, config in found):
        studies = " and ".join(study for study, _ in found)
        raise UserError(f"params.yaml: the judge {name!r} is another in {studies}; give one of them a name of its own.")
    return found[0][1]
