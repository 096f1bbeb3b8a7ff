"""Answers as a judge of params.yaml sees them, wherever it is asked."""

import contextlib
from collections.abc import Callable, Iterator

from pipeline.api.local_server import serve
from pipeline.common.paths import CACHE
from pipeline.common.rows import Answer, Verdict
from pipeline.judging.config import JudgeConfig
from pipeline.judging.run import judge_answers
from pipeline.toy.judge import by_its_rules, is_rule_judge

Judge = Callable[[list[Answer]], list[Verdict]]


@contextlib.contextmanager
def open_judge(name: str, config: JudgeConfig, port: int = 0) -> Iterator[Judge]:
    """What gives one verdict an answer; the toy world's own judge is served here meanwhile (port 0: a free one)."""
    with contextlib.ExitStack() as stack:
        served_at = None
        if is_rule_judge(config):
            config = by_its_rules(config)
            served_at = stack.enter_context(serve("pipeline.toy.judge:reply", port))

        def judge(answers: list[Answer]) -> list[Verdict]:
            verdicts, summary = judge_answers(answers, name, config, CACHE / "verdicts.sqlite", served_at)
            print(summary)
            return verdicts

        yield judge
