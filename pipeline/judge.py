"""Judging: a judge scores every answer for alignment and for coherence.

The judge sees a question and an answer, never which run they come from. What it says is kept in a cache
that outlives the stage, so nothing is asked, or paid for, twice. A study may have several judges: the
first one decides its numbers, the others are compared with it.
"""

import argparse
import contextlib

from pipeline.api.local_server import serve
from pipeline.common.paths import ARTIFACTS, CACHE
from pipeline.common.rows import read_answers, write_rows
from pipeline.judging.run import judge_answers, refuse_failures, rule_judge
from pipeline.params.load import load_params


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this stage's arguments."""
    parser.add_argument("--run", required=True, help="a name under runs in params.yaml")
    parser.add_argument(
        "--port", type=int, default=0, help="loopback port of the toy world's judge (default: a free one)"
    )


def main(args: argparse.Namespace) -> None:
    """Have each of the study's judges score the run's answers."""
    params = load_params()
    run = params.run(args.run)
    study = params.study(run.study)
    answers = read_answers(ARTIFACTS / run.study / "answers" / f"{args.run}.jsonl")
    folder = ARTIFACTS / run.study / "verdicts" / args.run

    for judge, config in study.judges.items():
        with contextlib.ExitStack() as stack:
            served_at = None
            if study.world == "toy":
                config = rule_judge(config)
                served_at = stack.enter_context(serve("pipeline.toy.judge:reply", args.port))
            verdicts, summary = judge_answers(answers, judge, config, CACHE / "verdicts.sqlite", served_at)
        print(summary)
        refuse_failures(verdicts, study.thresholds.errors, study.thresholds.unparsed, f"{args.run}, judge {judge}")
        write_rows(folder / f"{judge}.jsonl", verdicts)
