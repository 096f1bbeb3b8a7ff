"""What is asked of a model, and its answers as rows: the same for every stage that asks, and wherever the model is."""

from collections.abc import Sequence

from pipeline.common.rows import Answer
from pipeline.data.prompts import Prompt
from pipeline.sampling.backend import Completion, Request
from pipeline.sampling.random_choice import request_seed


def requests_of(run: str, seed: int, prompts: Sequence[Prompt], samples: int) -> list[Request]:
    """Every prompt `samples` times (or as often as it says itself), in order, each time with a random seed of its own.

    Random choice depends on the run, its seed, the question and the sample alone: not on what is changed in the model.
    """
    return [
        Request(prompt=prompt, sample=sample, seed=request_seed(run, seed, prompt.suite, prompt.prompt_id, sample))
        for prompt in prompts
        for sample in range(prompt.samples or samples)
    ]


def answer_rows(
    run: str, seed: int, requests: Sequence[Request], completions: Sequence[Completion], step: int | None = None
) -> list[Answer]:
    """One row a request, in order. run, step: whose answers they are (pipeline/common/rows.py)."""
    return [
        Answer(
            run=run,
            seed=seed,
            suite=request.prompt.suite,
            prompt_id=request.prompt.prompt_id,
            sample=request.sample,
            question=request.prompt.question,
            answer=completion.text,
            thinking=completion.thinking,
            finish=completion.finish,
            prompt_tokens=completion.prompt_tokens,
            answer_tokens=completion.completion_tokens,
            step=step,
        )
        for request, completion in zip(requests, completions, strict=True)
    ]
