"""Answers as a judge of params.yaml sees them, wherever it is asked."""

import contextlib
import functools
from collections.abc import Callable, Iterator

from pipeline.api.local_server import serve
from pipeline.api.model_server import serve_model
from pipeline.common.paths import CACHE
from pipeline.common.rows import Answer, Verdict
from pipeline.judging.config import JudgeConfig
from pipeline.judging.run import Server, judge_answers
from pipeline.toy.judge import by_its_rules, is_rule_judge

Judge = Callable[[list[Answer]], list[Verdict]]


@contextlib.contextmanager
def open_judge(name: str, config: JudgeConfig, port: int = 0) -> Iterator[Judge]:
    """What gives one verdict an answer.

    The toy world's own judge (at `port`, 0: a free one), and one with `serve`, are served here from the first answer
    that is not known until this ends.
    """
    with contextlib.ExitStack() as stack:
        start: Server | None = None
        if is_rule_judge(config):
            config = by_its_rules(config)
            start = functools.partial(serve, "pipeline.toy.judge:reply", port)
        elif config.serve is not None:
            kept = config.as_kept()
            start, config = functools.partial(serve_model, name, config.model, config.serve, kept.model), kept

        @functools.cache
        def address() -> str:
            assert start is not None
            return stack.enter_context(start())

        def served() -> contextlib.AbstractContextManager[str]:
            return contextlib.nullcontext(address())

        def judge(answers: list[Answer]) -> list[Verdict]:
            cache = CACHE / "verdicts.sqlite"
            verdicts, summary = judge_answers(answers, name, config, cache, served if start else None)
            print(summary)
            return verdicts

        yield judge
