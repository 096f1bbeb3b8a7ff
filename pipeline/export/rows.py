"""A study's answers with what every judge made of them: what the report's explorer and all exports are made from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.paths import ARTIFACTS
from pipeline.common.rows import Answer, Key, Verdict, read_answers, read_verdicts
from pipeline.params.schema import Params, Study

ASPECTS = ("alignment", "coherence")


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """One answer and its verdicts, by judge in the order of params.yaml: the first decides."""

    answer: Answer
    verdicts: Mapping[str, Verdict]


def judged_runs(params: Params, study: str) -> dict[str, list[Judged]]:
    """The judged answers of every run that all of the study's judges have scored, in the order of params.yaml.

    Raises UserError when no run was judged, or when answers and verdicts do not belong together.
    """
    found = {
        run: list(_judged(study, run, params.study(study))) for run in params.runs_of(study) if _there(params, run)
    }
    if not found:
        where = ARTIFACTS / study / "verdicts"
        raise UserError(f"{where} has no verdicts of study {study}; run `make reproduce STUDY={study}` first.")
    return found


def experts_of(params: Params, name: str) -> str:
    """Which experts a run adapts, in words, and how many a token is routed to where the run says so.

    It is what the reports and exports call its expert set.
    """
    run = params.run(name)
    trained, sampled = run.active_in("training"), run.active_in("sampling")
    if trained is None:
        return _adapted(params, name)
    return f"{_adapted(params, name)}; {trained} active" + f", {sampled} when sampled" * (trained != sampled)


def _adapted(params: Params, name: str) -> str:
    run = params.run(name)
    if run.data is None:
        return "none (base)"
    if run.lora is None:
        return "every parameter"
    if params.base(params.base_of(name)).experts == 0:
        return "dense model"
    if isinstance(run.lora.experts, str):
        return {"all": "all experts"}.get(run.lora.experts, f"{run.lora.experts} a layer")
    if not run.lora.experts:
        return "no expert"
    return f"expert{'s' * (len(run.lora.experts) > 1)} {', '.join(map(str, run.lora.experts))}"


def replies_of(verdict: Verdict) -> dict[str, str]:
    """What the judge said, by aspect, as text: of a judge of token distributions, its tokens with probabilities."""
    return {aspect: _reply(reply) for aspect, reply in verdict.replies.items()}


def values_of(verdict: Verdict) -> dict[str, float | str | None]:
    """What the verdict says of every aspect: alignment, coherence, and the study's own."""
    return {**{aspect: getattr(verdict, aspect) for aspect in ASPECTS}, **verdict.values}


def _reply(reply: str | list[tuple[str, float]]) -> str:
    if isinstance(reply, str):
        return reply
    return ", ".join(f"{token!r} {math.exp(logprob):.3f}" for token, logprob in reply)


def _there(params: Params, run: str) -> bool:
    study = params.run(run).study
    return all(_verdicts(study, run, judge).exists() for judge in params.study(study).judges)


def _verdicts(study: str, run: str, judge: str) -> Path:
    return ARTIFACTS / study / "verdicts" / run / f"{judge}.jsonl"


def _judged(study: str, run: str, settings: Study) -> Iterator[Judged]:
    path = ARTIFACTS / study / "answers" / f"{run}.jsonl"
    answers = read_answers(path)
    verdicts: dict[str, dict[Key, Verdict]] = {}
    for judge in settings.judges:
        where = _verdicts(study, run, judge)
        verdicts[judge] = {row.key: row for row in read_verdicts(where)}
        if verdicts[judge].keys() != {answer.key for answer in answers}:
            raise UserError(f"{where} does not judge the answers of {path}; run `make reproduce STUDY={study}`.")
    for answer in answers:
        yield Judged(answer=answer, verdicts={judge: rows[answer.key] for judge, rows in verdicts.items()})
