"""What of a study is not here yet, counted by known sizes: prompts, training sets, a judge's templates."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.paths import CACHE
from pipeline.common.rows import Answer
from pipeline.data.known_sizes import ESTIMATED, SUITES
from pipeline.data.prompts import Prompt, ask
from pipeline.data.tags import ask_tagged, split_suite
from pipeline.judging.config import JudgeConfig
from pipeline.judging.estimate import BYTES_PER_TOKEN, JudgeEstimate, estimate_judging
from pipeline.params.inputs import answered_as_often, conversations, suite
from pipeline.params.schema import Run, Study

# Bytes around question and answer in a judge's prompt, where its templates are not here yet.
TEMPLATE_BYTES = 1100


def prompts_of(study: Study, name: str, seed: int) -> tuple[Prompt, ...]:
    """A suite's prompts; where its file is not here, as many, with as many bytes, the longest as long."""
    try:
        return suite(study, name, seed)
    except UserError:
        untagged, tag = split_suite(name)
        if untagged not in SUITES:
            raise
        count, size, longest = SUITES[untagged]
        lengths = [longest, *[(size - longest) // (count - 1)] * (count - 1)]
        prompts = tuple(ask(untagged, f"{number:04} ".ljust(length, "x")) for number, length in enumerate(lengths))
        return ask_tagged(answered_as_often(study, untagged, prompts), tag)


def assumed(study: Study, runs: dict[str, Run]) -> list[str]:
    """What is counted by known sizes, since it is not here."""
    absent = []
    for name in study.suites:
        try:
            suite(study, name, study.seeds[0])
        except UserError:
            how = ESTIMATED.get(split_suite(name)[0])
            absent.append(f"suite {name} ({how})" if how else f"suite {name}")
    for run in {run.trained_on: run for run in runs.values() if run.trained_on}.values():
        try:
            conversations(study, run, study.seeds[0])
        except UserError:
            absent.append(f"training set {run.trained_on}")
    return absent


def judging(
    judge: str, config: JudgeConfig, answers: Iterator[Answer], unanswered: Counter[str], limit: int
) -> JudgeEstimate:
    """What a judge will take, by its own templates, or by their usual size where those are not here."""
    try:
        return estimate_judging(judge, config, CACHE / "verdicts.sqlite", answers, unanswered, limit)
    except UserError:
        if Path(config.templates).exists():
            raise
    requests = 2 * unanswered.total()
    size = sum(2 * count * (TEMPLATE_BYTES + len(question.encode())) for question, count in unanswered.items())
    tokens, replies = round(size / BYTES_PER_TOKEN) + requests * limit, requests * config.max_reply_tokens
    return JudgeEstimate(
        judge=judge,
        requests=requests,
        cached=0,
        prompt_tokens=tokens,
        reply_tokens=replies,
        usd=config.usd(tokens, replies),
        most_usd=config.usd(round(BYTES_PER_TOKEN * tokens), replies),
        spent_usd=0.0,
        basis=f"its prompts are not here yet: {TEMPLATE_BYTES} bytes assumed around question and answer",
    )
