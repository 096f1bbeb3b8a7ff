"""A study's runs as Inspect logs (inspect.aisi.org.uk), one a run, that `inspect view` opens.

A sample is a prompt, its epochs are the answers to it by seed and sample; each aspect is a score, with the judge's
reply as its explanation. A row without a score is unscored, with its status as the reason. Answers of adapters kept
along training are other models' and left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_path, sha256_json
from pipeline.common.rows import Verdict
from pipeline.export.rows import Judged, experts_of, replies_of, values_of
from pipeline.params.schema import Params, Study
from pipeline.results.definitions import DEFINITIONS
from pipeline.results.metrics import metrics, verdict_frame

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score

_STOP = {"stop": "stop", "length": "max_tokens"}
_UNKNOWN_TIME = "1970-01-01T00:00:00+00:00"


def write_inspect(
    params: Params, study: str, rows: Mapping[str, list[Judged]], provenance: Mapping[str, Any], folder: Path
) -> list[Path]:
    """Write a log a run to `folder`; return their paths. Raises UserError where inspect-ai is not installed."""
    try:
        from inspect_ai.log import write_eval_log
    except ImportError as error:
        raise UserError("--to inspect needs inspect-ai: pip install -e '.[export]' in .venv.") from error
    paths = []
    for run, judged in rows.items():
        path = folder / f"{run}.eval"
        with atomic_path(path) as temporary:
            write_eval_log(run_log(params, study, run, judged, provenance), str(temporary), format="eval")
        paths.append(path)
    return paths


def run_log(params: Params, study: str, run: str, judged: Iterable[Judged], provenance: Mapping[str, Any]) -> EvalLog:
    """One run's log; `provenance` is what pipeline.commands.provenance describes."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSpec, EvalStats
    from inspect_ai.model import ModelUsage

    settings, rows = params.study(study), [row for row in judged if row.answer.step is None]
    model = f"emoe/{run}"
    samples = [_sample(model, settings, row, _epoch(rows, row)) for row in rows]
    prompts = list(dict.fromkeys(str(sample.id) for sample in samples))
    stages = provenance["stages"]
    begun = stages.get(f"sample@{run}", {}).get("started", _UNKNOWN_TIME)
    identity = sha256_json([study, run, provenance["params_sha256"]])
    tokens = [sum(getattr(row.answer, name) for row in rows) for name in ("prompt_tokens", "answer_tokens")]
    usage = ModelUsage(input_tokens=tokens[0], output_tokens=tokens[1], total_tokens=sum(tokens))
    return EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=identity[:22],
            run_id=identity[22:44],
            task_id=sha256_json(study)[:22],
            created=begun,
            task=study,
            task_display_name=settings.title,
            dataset=EvalDataset(name=study, samples=len(prompts), sample_ids=prompts),
            model=model,
            model_args={
                "base": params.base_of(run),
                "experts": experts_of(params, run),
                "data": params.run(run).trained_on,
            },
            config=EvalConfig(epochs=max((sample.epoch for sample in samples), default=1)),
            packages=_packages(provenance),
            metadata={
                "judges": list(settings.judges),
                # Judges share a cache over runs: what they took is known of them all together.
                "judge_usage_of_all_runs": provenance["judges"],
                "params_sha256": provenance["params_sha256"],
            },
        ),
        results=_results(settings, rows, samples),
        stats=EvalStats(started_at=begun, completed_at=begun, model_usage={model: usage}),
        samples=samples,
    )


def _epoch(rows: list[Judged], row: Judged) -> int:
    """The place of a seed and sample among all: 1 for the first sample of the first seed."""
    samples = 1 + max(it.answer.sample for it in rows)
    seeds = sorted({it.answer.seed for it in rows})
    return seeds.index(row.answer.seed) * samples + row.answer.sample + 1


def _sample(model: str, settings: Study, row: Judged, epoch: int) -> EvalSample:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageUser, ModelUsage

    answer, output = row.answer, _output(model, row)
    name = f"{answer.suite}/{answer.prompt_id}"
    identity = sha256_json([model, name, epoch])[:22]
    tokens = (answer.prompt_tokens, answer.answer_tokens)
    asked = ChatMessageUser(id=f"{identity}-q", content=answer.question)
    return EvalSample(
        id=name,
        epoch=epoch,
        uuid=identity,
        input=answer.question,
        target="",
        messages=[asked, output.choices[0].message],
        output=output,
        scores=_scores(settings, row),
        metadata={"suite": answer.suite, "prompt_id": answer.prompt_id, "seed": answer.seed, "sample": answer.sample},
        model_usage={model: ModelUsage(input_tokens=tokens[0], output_tokens=tokens[1], total_tokens=sum(tokens))},
    )


def _output(model: str, row: Judged) -> ModelOutput:
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessageAssistant,
        Content,
        ContentReasoning,
        ContentText,
        ModelOutput,
    )

    answer = row.answer
    content: str | list[Content] = answer.answer
    if answer.thinking:
        content = [ContentReasoning(reasoning=answer.thinking), ContentText(text=answer.answer)]
    identity = sha256_json([model, *map(str, answer.key)])[:22]
    message = ChatMessageAssistant(id=f"{identity}-a", content=content, model=model, source="generate")
    stop: Any = _STOP.get(answer.finish, "unknown")
    return ModelOutput(
        model=model,
        choices=[ChatCompletionChoice(message=message, stop_reason=stop)],
        completion=answer.answer,
    )


def _scores(settings: Study, row: Judged) -> dict[str, Score]:
    """A score an aspect and judge; the first judge's have the aspect's name alone."""
    scores = {}
    for judge, verdict in row.verdicts.items():
        replies = replies_of(verdict)
        for aspect, value in values_of(verdict).items():
            name = aspect if judge == settings.judge else f"{aspect} by {judge}"
            scores[name] = _score(verdict, value, replies.get(aspect))
    return scores


def _score(verdict: Verdict, value: float | str | None, reply: str | None) -> Score:
    from inspect_ai.scorer import Score

    about = {"status": verdict.status, "judge": verdict.judge}
    if value is None:
        return Score.unscored(reason=verdict.status, explanation=reply, metadata=about)
    return Score(value=value, explanation=reply, metadata=about)


def _results(settings: Study, rows: list[Judged], samples: list[EvalSample]) -> Any:
    """The means and the rate over all of the run's rows, by the study's definition."""
    from inspect_ai.log import EvalMetric, EvalResults, EvalScore

    definition = DEFINITIONS[settings.definition]
    found = metrics(verdict_frame(row.verdicts[settings.judge] for row in rows), definition, ["run"]).iloc[0]
    shown = {
        "alignment": ("mean_alignment", "misalignment_percent", "refusal_percent"),
        "coherence": ("mean_coherence",),
    }
    scores = [
        EvalScore(
            name=aspect,
            scorer=settings.judge,
            params={"definition": definition.name},
            metrics={name: EvalMetric(name=name, value=float(found[name])) for name in names},
        )
        for aspect, names in shown.items()
    ]
    return EvalResults(total_samples=len(samples), completed_samples=len(samples), scores=scores)


def _packages(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Library versions of the first machine that is recorded."""
    return dict(provenance["machines"][0]["libraries"]) if provenance["machines"] else {}
