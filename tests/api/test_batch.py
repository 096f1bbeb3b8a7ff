"""OpenAI's Batch API: the same verdicts at half the price, and no batch submitted twice."""

import sqlite3

import pytest

from pipeline.api import batch
from pipeline.api.replies import ReplyCache
from pipeline.common.errors import UserError
from pipeline.judging.run import judge_answers
from tests.support.judge_server import Script, judge_config, judge_server, make_answers

PRICES = {"usd_per_million_input_tokens": 1000.0, "usd_per_million_output_tokens": 0.0}


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    """Batches here are done at the second look."""
    monkeypatch.setattr(batch, "_FIRST_POLL_S", 0.02)


def test_a_batch_gives_the_verdicts_of_ordinary_requests_at_half_their_price(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "_MOST_REQUESTS", 30)
    answers = make_answers(50)
    with judge_server(Script(prompt_tokens=10)) as url:
        config = judge_config(tmp_path, base_url=url, **PRICES)
        ordinary, paid = judge_answers(answers, "scripted", config, tmp_path / "one.db")
    script = Script(prompt_tokens=10)
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, batch=True, **PRICES)
        batched, half = judge_answers(answers, "scripted", config, tmp_path / "two.db")
    assert batched == ordinary
    assert set(script.answered.values()) == {1} and script.seen["answered"] == 1
    assert script.batches == 4
    assert paid.usd == pytest.approx(1.0)
    assert half.usd == pytest.approx(0.01 + 99 * 0.005)  # the preflight is an ordinary request
    assert (half.calls, half.requests) == (100, 100)


def test_files_may_take_longer_than_a_request(tmp_path):
    script = Script(file_latency_s=1.0)
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, batch=True, timeout_s=0.5, max_retries=3)
        verdicts, _ = judge_answers(make_answers(3), "scripted", config, tmp_path / "cache.db")
    assert "error" not in {verdict.status for verdict in verdicts}


def test_an_upload_that_fails_takes_nothing_from_the_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "_UPLOAD_TIMEOUT_S", 0.3)
    script = Script(file_latency_s=2.0, prompt_tokens=10)
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, batch=True, max_retries=0, budget_usd=10.0, **PRICES)
        with pytest.raises(UserError, match="cannot be reached; run again to go on"):
            judge_answers(make_answers(3), "scripted", config, tmp_path / "cache.db")
    with ReplyCache(tmp_path / "cache.db") as cache:
        assert cache.spent_usd("scripted") == pytest.approx(0.01)  # the preflight


def test_a_killed_process_finds_its_batches_again(tmp_path, monkeypatch):
    script = Script()
    answers = make_answers(20)
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, batch=True)
        with monkeypatch.context() as patch:
            patch.setattr(batch.BatchClient, "_collect", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                judge_answers(answers, "scripted", config, tmp_path / "cache.db")
        verdicts, _ = judge_answers(answers, "scripted", config, tmp_path / "cache.db")
    assert script.batches == 1 and set(script.answered.values()) == {1}
    assert "error" not in {verdict.status for verdict in verdicts}
    with sqlite3.connect(tmp_path / "cache.db") as db:
        assert db.execute("SELECT COUNT(*) FROM batched").fetchone() == (0,)


def test_a_batch_that_nobody_was_told_of_is_found_again(tmp_path):
    script = Script(lose_batches=True, prompt_tokens=10)
    answers = make_answers(20)
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, batch=True, budget_usd=10.0, **PRICES)
        with pytest.raises(UserError, match="run again to go on"):
            judge_answers(answers, "scripted", config, tmp_path / "cache.db")
        script.lose_batches = False
        verdicts, _ = judge_answers(answers, "scripted", config, tmp_path / "cache.db")
    assert script.batches == 1 and set(script.answered.values()) == {1}
    assert "error" not in {verdict.status for verdict in verdicts}
    with ReplyCache(tmp_path / "cache.db") as cache:
        assert cache.spent_usd("scripted") == pytest.approx(0.01 + 39 * 0.005)


def test_a_file_of_which_no_batch_was_made_becomes_one(tmp_path, monkeypatch):
    script = Script()
    answers = make_answers(20)
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, batch=True)
        with monkeypatch.context() as patch:
            patch.setattr(batch.BatchClient, "_make", _killed)
            with pytest.raises(KeyboardInterrupt):
                judge_answers(answers, "scripted", config, tmp_path / "cache.db")
        assert script.batches == 0
        verdicts, _ = judge_answers(answers, "scripted", config, tmp_path / "cache.db")
    assert script.batches == 1 and set(script.answered.values()) == {1}
    assert "error" not in {verdict.status for verdict in verdicts}


async def _killed(self, file):
    raise KeyboardInterrupt


async def _interrupted(self, batches):
    if batches:
        raise KeyboardInterrupt


def test_what_a_batch_could_not_answer_is_an_error_now_and_asked_next_time(tmp_path):
    script = Script(fault_share=0.3, faults=("500",))
    answers = make_answers(40)
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, batch=True)
        verdicts, summary = judge_answers(answers, "scripted", config, tmp_path / "cache.db")
        assert 0 < summary.status["error"] < 40
        assert set(summary.errors.values()) == {"the batch answered HTTP 500"}
        script.fault_share = 0.0
        verdicts, _ = judge_answers(answers, "scripted", config, tmp_path / "cache.db")
    assert "error" not in {verdict.status for verdict in verdicts}
    assert set(script.answered.values()) == {1}


def test_a_batch_that_ends_unfinished_leaves_error_rows(tmp_path):
    script = Script(batch_status="expired")
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, batch=True)
        verdicts, summary = judge_answers(make_answers(3), "scripted", config, tmp_path / "cache.db")
    assert [verdict.status for verdict in verdicts] == ["error"] * 3
    assert set(summary.errors.values()) == {"batch batch-0 is expired and did not answer it"}


def test_a_refused_batch_says_why(tmp_path):
    with judge_server(Script(batch_status="failed", message="Enqueued token limit reached")) as url:
        config = judge_config(tmp_path, base_url=url, batch=True)
        with pytest.raises(UserError, match="batch-0 was refused: Enqueued token limit reached"):
            judge_answers(make_answers(3), "scripted", config, tmp_path / "cache.db")


def test_a_batch_stays_within_the_budget(tmp_path):
    script = Script(prompt_tokens=10)
    answers = make_answers(100)
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, batch=True, budget_usd=0.5, **PRICES)
        with pytest.raises(UserError, match="raise budget_usd of scripted"):
            judge_answers(answers, "scripted", config, tmp_path / "cache.db")
        paid = 0.01 + (script.answered.total() - 1) * 0.005
        assert 0.4 < paid <= 0.5
        config = judge_config(tmp_path, base_url=url, batch=True, budget_usd=5.0, **PRICES)
        judge_answers(answers, "scripted", config, tmp_path / "cache.db")
    assert set(script.answered.values()) == {1} and len(script.answered) == 200


def test_a_key_without_access_is_found_out_before_anything_is_uploaded(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "wrong")
    script = Script(key="right")
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, batch=True, api_key_env="JUDGE_KEY")
        with pytest.raises(UserError, match="does not accept the key in JUDGE_KEY"):
            judge_answers(make_answers(3), "scripted", config, tmp_path / "cache.db")
    assert script.batches == 0
