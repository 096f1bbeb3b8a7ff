"""Sampling: choice belongs to the request; answers are the completion's tokens."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.prompts import ask
from pipeline.sample import sample_answers
from pipeline.sampling.backend import Completion, Request
from pipeline.sampling.cache import complete_all
from pipeline.sampling.choose import start_backend
from pipeline.sampling.random_choice import choose, request_seed, uniforms
from tests.support.sampling_models import decoding, model_of, prompts, save_base

DERANDOMISED = settings(deadline=None, derandomize=True, max_examples=100)
logits = st.lists(st.floats(-20, 20), min_size=2, max_size=30)


def test_chosen_tokens_follow_the_distribution():
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05])
    points = torch.from_numpy(uniforms(list(range(20000)), 1)[:, 0])
    tokens = choose(chances.log().repeat(20000, 1), points, temperature=1.0, top_p=1.0)
    shares = torch.bincount(tokens, minlength=4) / 20000
    # Four standard errors of a share of one half.
    assert (shares - chances).abs().max() < 4 * 0.5 / 20000**0.5


@DERANDOMISED
@given(logits, st.floats(0, 1, exclude_max=True), st.floats(0.1, 1.0), st.floats(0.2, 2.0))
def test_top_p_keeps_the_nucleus(values, point, top_p, temperature):
    scores = torch.tensor([values])
    token = choose(scores, torch.tensor([point]), temperature, top_p).item()
    chances = torch.softmax(scores.double() / temperature, dim=-1)[0]
    above = chances[chances > chances[token]].sum().item()
    assert above < top_p or np.isclose(above, top_p)


@DERANDOMISED
@given(logits, st.floats(0, 1, exclude_max=True))
def test_temperature_zero_is_greedy(values, point):
    scores = torch.tensor([values])
    assert choose(scores, torch.tensor([point]), 0.0, 1.0).item() == scores.argmax().item()


def test_a_request_has_its_own_numbers():
    seeds = [request_seed("run", 1, "suite", f"prompt{i}", 0) for i in range(6)]
    assert len(set(seeds)) == 6
    both, alone = uniforms(seeds, 5), uniforms(seeds[3:4], 5)
    assert (both[3] == alone[0]).all()


class Recorder:
    """A backend that answers with the request's number and remembers what it was asked."""

    def __init__(self, fail_at=None):
        self.asked, self.fail_at = [], fail_at

    def complete(self, batches):
        # Backwards: an engine finishes in any order.
        for place, requests in reversed(list(enumerate(batches))):
            if self.fail_at is not None and len(self.asked) >= self.fail_at:
                raise KeyboardInterrupt
            self.asked += requests
            yield (
                place,
                [
                    Completion(
                        text=f"answer {r.sample}", thinking="", finish="stop", prompt_tokens=1, completion_tokens=2
                    )
                    for r in requests
                ],
            )


def requests(count):
    return [Request(prompt=ask("s", "why?"), sample=sample, seed=sample) for sample in range(count)]


def test_an_interrupted_sampling_asks_only_what_is_missing(tmp_path):
    broken, whole = Recorder(fail_at=4), Recorder()
    with pytest.raises(KeyboardInterrupt):
        complete_all(requests(10), 2, {"model": "m"}, tmp_path, broken.complete)
    assert [request.sample for request in broken.asked] == [8, 9, 6, 7]
    texts = [c.text for c in complete_all(requests(10), 2, {"model": "m"}, tmp_path, whole.complete)]
    assert texts == [f"answer {sample}" for sample in range(10)]
    assert sorted(request.sample for request in whole.asked) == [0, 1, 2, 3, 4, 5]


def test_another_model_is_asked_anew(tmp_path):
    complete_all(requests(2), 2, {"model": "m"}, tmp_path, Recorder().complete)
    other = Recorder()
    complete_all(requests(2), 2, {"model": "n"}, tmp_path, other.complete)
    assert len(other.asked) == 2


def test_what_is_answered_starts_no_backend(tmp_path):
    complete_all(requests(4), 2, {}, tmp_path, Recorder().complete)

    def complete(batches):
        raise AssertionError("nothing is left to ask")

    assert len(complete_all(requests(4), 2, {}, tmp_path, complete)) == 4


def test_prompts_of_unequal_length_are_answered_by_a_base_that_asks_for_the_routers_loss(tmp_path, monkeypatch):
    base = save_base("qwen3_moe", tmp_path / "base")
    asked = prompts(8)
    monkeypatch.chdir(tmp_path)
    settings = decoding(batch=4)
    plain = sample_answers(start_backend(settings), model_of(base, None), asked, settings, "run", 1)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"output_router_logits": True}))
    assert sample_answers(start_backend(settings), model_of(base, None), asked, settings, "run", 1) == plain
