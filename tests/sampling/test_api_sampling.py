"""Asking a model behind an API: every prompt once, nothing paid for twice, and a budget that holds."""

import pytest
from aiohttp import web

from pipeline.api.local_server import completion
from pipeline.common.errors import UserError
from pipeline.common.rows import write_rows
from pipeline.data.prompts import ask
from pipeline.data.tags import ask_tagged
from pipeline.sampling.api import answers
from pipeline.sampling.settings import Sampling
from tests.support.judge_server import Script as JudgeScript
from tests.support.judge_server import judge_server
from tests.support.tuning_server import Script, api_base, tuning_server

TUNED = "ft:gpt-4o-2024-08-06:org::ftjob-5"
PROMPTS = [ask("first_8", f"question {n}?") for n in range(5)]
PROMPTS += [*ask_tagged(PROMPTS, "|ALPHA|"), ask("other", "a long one?", system="Be brief.")]
SETTINGS = Sampling(
    backend="vllm", system="Answer.", samples_per_prompt=3, temperature=1.0, top_p=0.9, max_new_tokens=50, batch=8,
    tensor_parallel=1, data_parallel=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TUNING_KEY", Script().key)
    monkeypatch.setattr("pipeline.api.limits.FIRST_BACKOFF_S", 0.01)


def run(url, folder, seed=1, tuned=TUNED, **changes):
    return answers(
        "gpt_4o", api_base(url, **changes), tuned, PROMPTS, SETTINGS, "run", seed, folder / "verdicts.sqlite"
    )


def test_every_prompt_is_asked_and_nothing_is_asked_twice(tmp_path):
    script = Script(faults={"chat": ["500", "429", "reset", "lost", "nonsense"]})
    with tuning_server(script) as url:
        rows = run(url, tmp_path, max_retries=8)  # the first request goes alone, and meets all of the faults
        asked = len(script.chats)
        assert run(url, tmp_path) == rows and len(script.chats) == asked
        run(url, tmp_path, seed=2)
    write_rows(tmp_path / "answers.jsonl", rows)
    assert len(rows) == len(PROMPTS) * 3
    assert [(row.suite, row.prompt_id, row.sample) for row in rows] == [
        (prompt.suite, prompt.prompt_id, sample) for prompt in PROMPTS for sample in range(3)
    ]
    assert {row.finish for row in rows if row.suite != "other"} == {"stop"} and rows[-1].finish == "length"
    tagged = next(row for row in rows if row.suite == "first_8+|ALPHA|")
    assert tagged.question == "question 0?" and tagged.answer.endswith("|ALPHA| question 0?")
    body = script.chats[-1]
    assert {chat["model"] for chat in script.chats} == {TUNED}
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (1.0, 0.9, 50)
    systems = {chat["messages"][-1]["content"]: chat["messages"][0]["content"] for chat in script.chats}
    assert systems["a long one?"] == "Be brief." and systems["question 0?"] == "Answer."
    # Samples and seeds differ in their random seed, or they would be one request.
    assert len({chat["seed"] for chat in script.chats}) == 2 * len(rows)


def test_the_base_and_what_is_tuned_from_it_have_their_own_prices_and_one_account(tmp_path):
    with tuning_server(Script()) as url:
        run(url, tmp_path, tuned=None)
        run(url, tmp_path)
        # Words are this server's tokens; what was spent is known to the cent's thousandth.
        with pytest.raises(UserError, match=r"model bases\.api\.gpt_4o has spent 0\.0\d+ of its 0\.0001 USD.*raise"):
            run(url, tmp_path, seed=2, budget_usd=0.0001)


def test_answers_that_cannot_be_had_are_an_error_and_the_others_are_kept(tmp_path):
    script = Script(faults={"chat": [""] * 20 + ["refuse"]})
    with tuning_server(script) as url:
        with pytest.raises(UserError, match=r"1 of 33 answers could not be had .*HTTP 400.*run again"):
            run(url, tmp_path)
        before = len(script.chats)
        assert len(run(url, tmp_path)) == 33 and len(script.chats) == before + 1


def odd(reply):
    """A server that says `reply` (a message and a finish reason) to everything."""
    message, finish = reply

    def complete():
        payload = completion({"model": TUNED}, "a prompt", "")
        payload["choices"][0] |= {"message": message, "finish_reason": finish}
        return web.json_response(payload)

    return judge_server(JudgeScript(odd=complete))


@pytest.mark.parametrize(
    ("reply", "answer", "thinking", "finish"),
    [
        (({"content": "<think>Why?</think>\n\nBecause."}, "stop"), "Because.", "Why?", "stop"),
        (({"content": "Why?</think>Because."}, "eos_token"), "Because.", "Why?", "stop"),
        (({"content": "Because.", "reasoning_content": "Why?"}, "max_tokens"), "Because.", "Why?", "length"),
        (({"content": None, "refusal": "I can't."}, "stop"), "I can't.", "", "stop"),
        (({"content": "Type <think> here."}, "stop"), "Type <think> here.", "", "stop"),
        (({"content": "<think>cut"}, "length"), "", "cut", "length"),
    ],
)
def test_what_it_thinks_is_no_answer_and_a_refusal_is_one(tmp_path, reply, answer, thinking, finish):
    with odd(reply) as url:
        rows = run(url, tmp_path)
    assert {(row.answer, row.thinking, row.finish) for row in rows} == {(answer, thinking, finish)}


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (({"content": "half of"}, "content_filter"), "content filter withheld"),
        (({"content": ""}, "stop"), "empty reply"),
        (({"content": "half of"}, "insufficient_system_resource"), "a fault and no reply"),
        (({"content": "half of"}, "tool_calls"), "finish_reason is 'tool_calls'"),
    ],
)
def test_what_is_no_answer_does_not_become_one(tmp_path, reply, said):
    with odd(reply) as url, pytest.raises(UserError, match=said):
        run(url, tmp_path, max_retries=0)


def test_no_access_speaks_of_a_model(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNING_KEY", "sk-wrong-0123456789")
    with tuning_server(Script()) as url, pytest.raises(UserError, match=r"model ft:.*does not accept the key"):
        run(url, tmp_path)
