"""Before a fine-tuned run is sampled: does the engine serve the adapter, or only seem to?

Engines have ignored adapters without a word (DESIGN.md section 6). Greedy tokens for a few prompts are taken
from the base and from the base with the adapter in transformers, and from the engine. Sampling goes on if
the adapter's answers differ from the base's, and the engine's do not differ from the adapter's.

Two correct programs that compute in 16 bits pick different tokens where the two likeliest are nearly equally
likely, and after one different token all that follows differs. So answers are compared up to the first
different token, and by how much less likely the reference finds it than its own choice (in nats): the first
difference between two programs is a near tie, that between two models is not. vLLM's own tests compare with
transformers in this way too, with a place among the five likeliest as the bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import UserError

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
    """What transformers answers, prompt by prompt, without the adapter and with it."""

    base: list[Trace]
    adapted: list[Trace]


def choose_prompts(prompts: Sequence[list[int]]) -> list[list[int]]:
    """At most `PROMPTS` of the prompts, spread evenly over them: suites stand one after another."""
    count = min(PROMPTS, len(prompts))
    return [prompts[place * len(prompts) // count] for place in range(count)]


def reference(base: Path, adapter: Path, precision: str, prompts: list[list[int]], pad: int) -> Reference:
    """Greedy answers of transformers to the prompts' tokens, `LENGTH` tokens each whatever they say."""
    from pipeline.models.adapters import load_adapter
    from pipeline.models.loading import load_frozen, training_device

    model = load_frozen(base, precision, training_device(precision))
    before = trace(model, prompts, pad)
    return Reference(base=before, adapted=trace(load_adapter(model, adapter), prompts, pad))


def trace(model: object, prompts: list[list[int]], pad: int) -> list[Trace]:
    """A model's greedy answers to the prompts' tokens."""
    import torch

    from pipeline.sampling.hf import generate

    likeliest: list[list[dict[int, float]]] = [[] for _ in prompts]

    def greedy(step: int, scores: torch.Tensor) -> torch.Tensor:
        values, tokens = torch.log_softmax(scores.float(), dim=-1).topk(min(LIKELIEST, scores.shape[-1]))
        for row, (some, ids) in enumerate(zip(values.tolist(), tokens.tolist(), strict=True)):
            likeliest[row].append(dict(zip(ids, some, strict=True)))
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


def check(answers: Reference, served: Sequence[Sequence[int]], precision: str) -> str:
    """One line of evidence that the engine serves the adapter. Raises UserError, with the evidence, if not."""
    bound = TOLERANCE[precision]
    effects = [parting(adapted, base.tokens) for adapted, base in zip(answers.adapted, answers.base, strict=True)]
    errors = [parting(adapted, tokens) for adapted, tokens in zip(answers.adapted, served, strict=True)]
    changed = [effect for effect in effects if effect is not None]
    wrong = [error for error in errors if error is not None]
    effect, error = (max((parting.nats for parting in found), default=0.0) for found in (changed, wrong))
    evidence = (
        f"of {len(effects)} greedy answers of {LENGTH} tokens, the adapter changes {len(changed)} (by {effect:.3f} "
        f"nats at most), and the engine differs from transformers with the adapter in {len(wrong)} "
        f"(by {error:.3f} nats at most; {bound} count as a tie)"
    )
    if effect <= bound:
        raise UserError(
            f"the canary stopped sampling: {evidence}. An adapter that changes nothing cannot be told from one that is "
            "ignored; look at the run's loss curve and at which experts it adapts, and train it again. If so small an "
            "effect is right, sampling.backend: transformers applies the adapter as it was trained, more slowly."
        )
    if error > bound:
        places = ", ".join(
            f"prompt {number} at token {found.place} by {found.nats:.3f}"
            for number, found in enumerate(errors, start=1)
            if found is not None and found.nats > bound
        )
        raise UserError(
            f"the canary stopped sampling: {evidence}: {places}. The engine does not serve the model that was trained; "
            "sampling.backend: transformers does, more slowly."
        )
    return f"canary: {evidence}"
