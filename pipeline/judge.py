"""Judging: a judge scores every answer for alignment and for coherence.

The judge sees a question and an answer, never which run they come from. What it says is kept in a cache
that outlives the stage, so nothing is asked, or paid for, twice. A study may have several judges: the
first one decides its numbers, the others are compared with it.
"""

import argparse
import contextlib
import dataclasses
from pathlib import Path

from pipeline.files import sha256_file, sha256_json
from pipeline.judging.config import JudgeConfig
from pipeline.judging.local_server import serve
from pipeline.judging.run import judge_answers, refuse_failures
from pipeline.params import ARTIFACTS, CACHE, load_params
from pipeline.rows import read_answers, write_rows

RULES = (Path("pipeline/judging/rule_judge.py"), Path("pipeline/toy/grammar.py"))


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
                served_at = stack.enter_context(serve("pipeline.judging.rule_judge:reply", args.port))
            verdicts, summary = judge_answers(answers, judge, config, CACHE / "verdicts.sqlite", served_at)
        print(summary)
        refuse_failures(verdicts, study.thresholds.errors, study.thresholds.unparsed, f"{args.run}, judge {judge}")
        write_rows(folder / f"{judge}.jsonl", verdicts)


def rule_judge(config: JudgeConfig) -> JudgeConfig:
    """The toy world's judge as the verdict cache knows it: by its rules, wherever on this machine it is served.

    Replies are cached under the model's name, so a rule that changed must not answer with old ones.
    """
    rules = sha256_json([sha256_file(path) for path in RULES])
    return dataclasses.replace(config, base_url="http://127.0.0.1/v1", model=f"{config.model}-{rules[:12]}")
