"""Before an engine samples a run: does it serve the model that was trained, or only seem to?

Engines have ignored adapters without a word (vllm #31534, #41384). Greedy tokens for a few prompts are taken from
transformers, with the adapter as it was trained, and from the engine, and sampling goes on if they do not differ. How
much the adapter changes beside its base is told, and no reason to stop: one expert of 128 at rank 1 may change little,
which is a result. A canary that could not have caught an ignored adapter says so.

Two correct programs that compute in 16 bits pick different tokens where the two likeliest are nearly equally
likely, and after one different token all that follows differs. So answers are compared up to the first
different token, and by how much less likely the reference finds it than its own choice (in nats): the first
difference between two programs is a near tie, that between two models is not. vLLM's own tests compare with
transformers in this way too, with a place among the five likeliest as the bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.common.errors import UserError
from pipeline.sampling.backend import Model

PROMPTS = 16
LENGTH = 32
LIKELIEST = 50
# Nats within which two tokens are tied. In bfloat16 a logit near 20 is itself known to 0.06.
TOLERANCE = {"float32": 0.01, "bfloat16": 0.5, "nf4": 0.5}


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A greedy answer: its tokens and, at each of them, the likeliest tokens' log probabilities."""

    tokens: list[int]
    likeliest: list[dict[int, float]]


@dataclass(frozen=True, kw_only=True)
class Parting:
    """Where an answer first differs from a reference, and how much less likely its token is there, in nats.

    A token that is not among the likeliest counts as the least of them: it is less likely than `nats` says.
    """

    place: int
    nats: float


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What transformers answers, prompt by prompt, as the model was trained, and without its adapter if it has one."""

    trained: list[Trace]
    base: list[Trace] | None


def choose_prompts(prompts: Sequence[list[int]]) -> list[list[int]]:
    """At most `PROMPTS` of the prompts, spread evenly over them: suites stand one after another."""
    count = min(PROMPTS, len(prompts))
    return [prompts[place * len(prompts) // count] for place in range(count)]


def reference(model: Model, prompts: list[list[int]], pad: int) -> Reference:
    """Greedy answers of transformers to the prompts' tokens, `LENGTH` tokens each whatever they say.

    Raises UserError where the model cannot be loaded, or its logits are not finite.
    """
    from pipeline.models.adapters import load_adapter
    from pipeline.models.loading import load_frozen, training_device

    held = load_frozen(model.base, model.precision, training_device(model.precision))
    before = trace(held, prompts, pad)
    if model.adapter is None:
        return Reference(trained=before, base=None)
    return Reference(trained=trace(load_adapter(held, model.adapter, base=model.base), prompts, pad), base=before)


def trace(model: object, prompts: list[list[int]], pad: int) -> list[Trace]:
    """A loaded model's greedy answers to the prompts' tokens."""
    import torch

    from pipeline.sampling.generate import generate

    likeliest: list[list[dict[int, float]]] = [[] for _ in prompts]

    def greedy(numbers: torch.Tensor, steps: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        values, tokens = torch.log_softmax(scores, dim=-1).topk(min(LIKELIEST, scores.shape[-1]))
        for number, some, ids in zip(numbers.tolist(), values.tolist(), tokens.tolist(), strict=True):
            likeliest[number].append(dict(zip(ids, some, strict=True)))
        return scores.argmax(dim=-1)

    answers = generate(model, prompts, greedy, LENGTH, frozenset(), pad)
    return [Trace(tokens=tokens, likeliest=steps) for tokens, steps in zip(answers, likeliest, strict=True)]


def parting(reference: Trace, tokens: Sequence[int]) -> Parting | None:
    """Where `tokens` first differ from the reference's, or None where they never do."""
    for place, (expected, token) in enumerate(zip(reference.tokens, tokens, strict=True)):
        if token != expected:
            known = reference.likeliest[place]
            return Parting(place=place, nats=known[expected] - known.get(token, min(known.values())))
    return None


def check(answers: Reference, engine: Sequence[Sequence[int]], precision: str) -> str:
    """What the canary found, in a line or two. Raises UserError, with the evidence, if the engine answers otherwise."""
    bound = TOLERANCE[precision]
    errors = [parting(trained, tokens) for trained, tokens in zip(answers.trained, engine, strict=True)]
    wrong = [error for error in errors if error is not None]
    evidence = (
        f"of {len(errors)} greedy answers of {LENGTH} tokens, the engine's differ from transformers' in {len(wrong)} "
        f"(by {max((error.nats for error in wrong), default=0.0):.3f} nats at most; {bound} count as a tie)"
    )
    if any(error.nats > bound for error in wrong):
        places = ", ".join(
            f"prompt {number} at token {found.place} by {found.nats:.3f}"
            for number, found in enumerate(errors, start=1)
            if found is not None and found.nats > bound
        )
        raise UserError(
            f"the canary stopped sampling: {evidence}: {places}. The engine does not serve the model that was trained; "
            "sampling.backend: transformers does."
        )
    return f"canary: {evidence}{_effect(answers, bound)}"


def _effect(answers: Reference, bound: float) -> str:
    """How much the adapter changes its base's answers, and a warning where it is too little to tell."""
    if answers.base is None:
        return ""
    parted = [parting(trained, base.tokens) for trained, base in zip(answers.trained, answers.base, strict=True)]
    changed = [effect.nats for effect in parted if effect is not None]
    said = f"; the adapter changes {len(changed)} of them (by {max(changed, default=0.0):.3f} nats at most)"
    if max(changed, default=0.0) > bound:
        return said
    return f"{said}\nwarning: so little changes that an engine which ignores the adapter would have passed"
