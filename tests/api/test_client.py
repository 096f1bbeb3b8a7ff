"""The client against a real HTTP server on loopback: nothing asked twice, nothing lost, clear refusals."""

import asyncio
import email.utils
import logging
import socket
import sqlite3
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from pipeline.api import client as client_module
from pipeline.api import limits, replies
from pipeline.api.completions import Reply
from pipeline.api.faults import retry_after_s
from pipeline.api.limits import Gate, Pace
from pipeline.api.local_server import failure
from pipeline.api.replies import ReplyCache
from pipeline.common.errors import UserError
from pipeline.judging.estimate import estimate_judging
from pipeline.judging.protocols import load_protocol
from pipeline.judging.run import judge_answers, refuse_failures
from tests.support.judge_server import Script, judge_config, judge_server, make_answers, scripted

SECRET = "sk-marker-9876543210"


@pytest.fixture
def quick_backoff(monkeypatch):
    """Waits between tries that suit a test."""
    monkeypatch.setattr(limits, "FIRST_BACKOFF_S", 0.01)


def expected(answers, config):
    """The status and scores that the scripted judge's opinions amount to."""
    protocol = load_protocol(config)
    rows = []
    for answer in answers:
        said = [
            scripted(protocol.request(answer, aspect).body["messages"][0]["content"])
            for aspect in ("alignment", "coherence")
        ]
        status = {"REFUSAL": "refusal", "CODE": "code"}.get(said[0], "scored")
        rows.append((status, float(said[0]) if status == "scored" else None, float(said[1])))
    return rows


def outcome(verdicts):
    return [(verdict.status, verdict.alignment, verdict.coherence) for verdict in verdicts]


def test_every_answer_gets_the_judges_opinion_and_each_prompt_is_asked_once(tmp_path):
    script = Script()
    answers = make_answers(200, distinct=60)
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url)
        verdicts, summary = judge_answers(answers, "scripted", config, tmp_path / "cache.db")
        again, summary_again = judge_answers(answers, "scripted", config, tmp_path / "cache.db")
    assert outcome(verdicts) == expected(answers, config)
    assert {verdict.status for verdict in verdicts} == {"scored", "refusal", "code"}
    assert [verdict.key for verdict in verdicts] == [answer.key for answer in answers]
    assert again == verdicts
    assert set(script.answered.values()) == {1} and len(script.answered) == 120
    assert (summary.requests, summary.calls, summary.cache_hits) == (120, 120, 0)
    assert (summary_again.calls, summary_again.cache_hits) == (0, 120)
    assert summary.models == Counter({"scripted": 120})
    assert "200 verdicts" in str(summary) and "120 calls" in str(summary)


def test_a_cached_run_needs_neither_server_nor_key(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    answers = make_answers(5)
    with judge_server(Script(key=SECRET)) as url:
        config = judge_config(tmp_path, base_url=url, api_key_env="JUDGE_KEY")
        verdicts, _ = judge_answers(answers, "scripted", config, tmp_path / "cache.db")
    monkeypatch.delenv("JUDGE_KEY")
    assert judge_answers(answers, "scripted", config, tmp_path / "cache.db")[0] == verdicts


def test_the_logprob_protocol_reads_the_distribution_over_http(tmp_path):
    answers = make_answers(20)
    with judge_server(Script()) as url:
        config = judge_config(tmp_path, base_url=url, protocol="logprob", temperature=0.0)
        verdicts, _ = judge_answers(answers, "scripted", config, tmp_path / "cache.db")
    for got, wanted in zip(outcome(verdicts), expected(answers, config), strict=True):
        mixed = [score if score is None else 0.75 * score + 12.5 for score in wanted[1:]]
        if wanted[0] == "scored":
            assert got == ("scored", pytest.approx(mixed[0]), pytest.approx(mixed[1]))
        else:  # the word has three quarters of the mass, and 50 the quarter that is just enough
            assert got == ("scored", pytest.approx(50), pytest.approx(mixed[1]))


def test_faults_are_overcome_and_counted(tmp_path, quick_backoff):
    script = Script(fault_share=0.3, faults=("429", "429-retry-after", "500", "reset", "truncated", "cut"))
    answers = make_answers(150)
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url)
        verdicts, summary = judge_answers(answers, "scripted", config, tmp_path / "cache.db")
    assert outcome(verdicts) == expected(answers, config)
    assert set(script.answered.values()) == {1} and len(script.answered) == 300
    assert all(script.seen[fault] for fault in script.faults)
    assert summary.throttled == script.seen["429"] + script.seen["429-retry-after"]
    assert summary.retries == sum(script.seen[fault] for fault in ("500", "reset", "truncated", "cut"))
    assert not summary.errors


def test_a_reply_that_takes_too_long_is_asked_for_again(tmp_path, quick_backoff):
    script = Script(fault_share=0.5, faults=("slow",), seed=1)
    answers = make_answers(3)
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, timeout_s=0.3, max_retries=50)
        verdicts, _ = judge_answers(answers, "scripted", config, tmp_path / "cache.db")
    assert script.seen["slow"] >= 1
    assert outcome(verdicts) == expected(answers, config)


def test_what_keeps_failing_is_an_error_row_and_fails_the_stage(tmp_path, quick_backoff):
    script = Script()
    answers = make_answers(4)
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, max_retries=1)
        judge_answers(answers[:3], "scripted", config, tmp_path / "cache.db")
        script.status = 500
        # A request that fails before anything was answered goes alone; the others still get their turn.
        verdicts, summary = judge_answers(answers, "scripted", config, tmp_path / "cache.db")
        assert [verdict.status for verdict in verdicts][3] == "error"
        assert "error" not in [verdict.status for verdict in verdicts][:3]
        assert verdicts[3].alignment is None and verdicts[3].coherence is None
        assert script.seen["500"] == 4 and len(summary.errors) == 2
        assert "HTTP 500" in str(summary)
        refuse_failures(verdicts, 0.25, 0.0, "run r")
        with pytest.raises(UserError, match=r"run r: 1 of 4 verdicts are error, more than the 20.0%"):
            refuse_failures(verdicts, 0.2, 0.0, "run r")
        # Errors are not remembered: once the endpoint is well, the row is judged.
        script.status = None
        verdicts, _ = judge_answers(answers, "scripted", config, tmp_path / "cache.db")
    assert outcome(verdicts) == expected(answers, config)


def test_unreadable_replies_are_kept_asked_again_and_counted(tmp_path):
    script = Script(fault_share=1.0, faults=("nonsense",))
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, max_unparsed_retries=2, seed=5)
        verdicts, summary = judge_answers(make_answers(3), "scripted", config, tmp_path / "cache.db")
        assert script.seen["nonsense"] == 3 * 2 * 3
        assert summary.asked_again == 12 and summary.status == {"unparsed": 3}
        with pytest.raises(UserError, match="3 of 3 verdicts are unparsed"):
            refuse_failures(verdicts, 1.0, 0.9, "run r")
        # Known to be unreadable: not paid for once more.
        assert judge_answers(make_answers(3), "scripted", config, tmp_path / "cache.db")[0] == verdicts
        assert script.seen["nonsense"] == 18
    with sqlite3.connect(tmp_path / "cache.db") as db:
        texts = db.execute("SELECT text FROM replies").fetchall()
    assert texts == [("As an AI, I would rate 1 of these",)] * 18


@pytest.mark.parametrize(
    ("script", "changes", "said"),
    [
        (Script(key="other"), {"api_key_env": "JUDGE_KEY"}, "does not accept the key in JUDGE_KEY"),
        (Script(status=403), {"api_key_env": "JUDGE_KEY"}, "may not use this model"),
        (Script(status=404), {}, "no such model"),
        (Script(status=429, code="insufficient_quota"), {}, "out of credit"),
        (
            Script(status=400, message="logprobs are not supported"),
            {},
            "HTTP 400: logprobs are not supported",
        ),
        (Script(logprobs=False), {"protocol": "logprob"}, "returns no logprobs"),
        (Script(prompt_tokens=0), {"usd_per_million_input_tokens": 1.0}, "no token usage"),
    ],
)
def test_an_endpoint_that_cannot_serve_is_found_out_by_few_requests(tmp_path, monkeypatch, script, changes, said):
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, **changes)
        with pytest.raises(UserError, match=said) as refusal:
            judge_answers(make_answers(50), "scripted", config, tmp_path / "cache.db")
    assert script.seen.total() <= 8
    assert SECRET not in str(refusal.value)


def test_an_address_where_nothing_listens_is_said_at_once(tmp_path, quick_backoff):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        config = judge_config(tmp_path, base_url=url)
        with pytest.raises(UserError, match=r"annot connect.*; is its server up"):
            judge_answers(make_answers(5), "scripted", config, tmp_path / "cache.db")


def test_an_endpoint_that_stops_answering_stops_the_run(tmp_path, monkeypatch, quick_backoff):
    script = Script()
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, timeout_s=0.6, max_retries=1000)
        judge_answers(make_answers(1), "scripted", config, tmp_path / "cache.db")
        monkeypatch.setattr(client_module, "_STALL_S", 0.2)  # three timeouts are longer, and count then
        script.status = 503
        with pytest.raises(UserError, match=r"HTTP 503.*run again to continue"):
            judge_answers(make_answers(20), "scripted", config, tmp_path / "cache.db")


def test_a_wait_of_hours_is_left_to_the_user(tmp_path):
    script = Script(fault_share=1.0, faults=("429-retry-after",), retry_after="7200")
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url)
        with pytest.raises(UserError, match="asks to wait 120 minutes"):
            judge_answers(make_answers(20), "scripted", config, tmp_path / "cache.db")
    assert script.seen.total() == 1


def test_nothing_is_sent_before_retry_after_is_over(tmp_path, quick_backoff):
    script = Script(fault_share=1.0, faults=("429-retry-after",), retry_after="0.5", seed=0)
    arrivals = []

    class Seen(Counter):
        def __setitem__(self, key, value):
            arrivals.append(time.monotonic())
            script.fault_share = 0.0  # only the first request is throttled
            super().__setitem__(key, value)

    script.seen = Seen()
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url)
        _, summary = judge_answers(make_answers(5), "scripted", config, tmp_path / "cache.db")
    assert summary.throttled == 1 and len(arrivals) == 11
    assert arrivals[1] - arrivals[0] >= 0.45


def test_retry_after_holds_those_back_who_wait_for_their_turn_in_the_minute(tmp_path, quick_backoff):
    script = Script(faults=("429-retry-after",), retry_after="1.5")
    arrivals = []

    class Seen(Counter):
        def __setitem__(self, key, value):
            arrivals.append(time.monotonic())
            script.fault_share = float(len(arrivals) == 1)  # only the second request is throttled
            super().__setitem__(key, value)

    script.seen = Seen()
    with judge_server(script) as url:
        # The 429 has the second between two turns to arrive in.
        config = judge_config(tmp_path, base_url=url, requests_per_minute=60)
        _, summary = judge_answers(make_answers(2), "scripted", config, tmp_path / "cache.db")
    assert summary.throttled == 1 and len(arrivals) == 5
    assert arrivals[2] - arrivals[1] >= 1.45


def test_a_run_that_must_stop_wakes_those_who_wait_and_sends_no_more(tmp_path):
    answers = iter([(429, {"Retry-After": "600"}), (402, {})])

    def odd():
        status, headers = next(answers)
        return failure(status, "no", headers)

    script = Script(spared=1, odd=odd)
    started = time.monotonic()
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, concurrency=2)
        with pytest.raises(UserError, match="out of credit"):
            judge_answers(make_answers(20), "scripted", config, tmp_path / "cache.db")
    assert time.monotonic() - started < 300
    assert script.seen["odd"] == 2


def test_what_an_endpoint_said_before_it_could_serve_is_not_kept(tmp_path):
    script = Script(logprobs=False)
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, protocol="logprob", max_unparsed_retries=0)
        with pytest.raises(UserError, match="returns no logprobs"):
            judge_answers(make_answers(3), "scripted", config, tmp_path / "cache.db")
        script.logprobs = True
        verdicts, _ = judge_answers(make_answers(3), "scripted", config, tmp_path / "cache.db")
    assert {verdict.status for verdict in verdicts} == {"scored"}


@pytest.mark.parametrize("value", [None, "", "  ", "two words", "ключ", "a\nb"])
def test_a_key_that_cannot_be_one_is_refused_by_its_variables_name(tmp_path, monkeypatch, value):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    config = judge_config(tmp_path, base_url="http://127.0.0.1:9/v1", api_key_env="JUDGE_KEY")
    with pytest.raises(UserError, match="JUDGE_KEY"):
        judge_answers(make_answers(1), "scripted", config, tmp_path / "cache.db")


def test_a_prompt_that_the_endpoint_moderates_is_one_error_row(tmp_path):
    script = Script()
    answers = make_answers(3)
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, concurrency=1)
        refused = load_protocol(config).request(answers[1], "alignment").body["messages"][0]["content"]
        script.refuse, script.message = {refused}, "flagged"
        verdicts, summary = judge_answers(answers, "scripted", config, tmp_path / "cache.db")
    assert [verdict.status == "error" for verdict in verdicts] == [False, True, False]
    assert next(iter(summary.errors.values())).endswith("HTTP 403: flagged")


def test_the_budget_stops_before_it_is_passed_and_loses_nothing(tmp_path):
    script = Script(prompt_tokens=5)
    answers = make_answers(100)
    with judge_server(script) as url:
        config = judge_config(
            tmp_path, base_url=url, usd_per_million_input_tokens=1000.0, budget_usd=0.5
        )  # 0.005 USD a request: 100 of 200 could be paid for
        with pytest.raises(UserError, match="raise budget_usd of scripted") as refusal:
            judge_answers(answers, "scripted", config, tmp_path / "cache.db")
        paid = script.answered.total()
        with ReplyCache(tmp_path / "cache.db") as cache:
            spent = cache.spent_usd("scripted")
        assert spent == pytest.approx(paid * 0.005)
        assert 0.4 < spent <= 0.5 and f"{spent:.4f}" in str(refusal.value)
        # The budget is for all runs together: the same answers once more spend nothing.
        with pytest.raises(UserError, match="budget_usd"):
            judge_answers(answers, "scripted", config, tmp_path / "cache.db")
        assert script.answered.total() == paid
        raised = judge_config(tmp_path, base_url=url, usd_per_million_input_tokens=1000.0, budget_usd=1.2)
        verdicts, summary = judge_answers(answers, "scripted", raised, tmp_path / "cache.db")
    assert outcome(verdicts) == expected(answers, config)
    assert set(script.answered.values()) == {1}
    assert summary.usd == pytest.approx(1.0 - spent)


def test_replies_that_got_lost_count_as_paid_for(tmp_path, quick_backoff):
    script = Script(fault_share=1.0, faults=("truncated",))
    with judge_server(script) as url:
        config = judge_config(
            tmp_path, base_url=url, usd_per_million_input_tokens=1000.0, budget_usd=0.5, max_retries=1000
        )  # at most about 0.05 USD a request
        with pytest.raises(UserError, match="replies that got lost count as paid"):
            judge_answers(make_answers(20), "scripted", config, tmp_path / "cache.db")
    assert 5 <= script.seen["truncated"] <= 12


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    script = Script()
    answers = make_answers(40)
    put = ReplyCache.put

    def put_then_stop(self, *reply):
        put(self, *reply)
        if script.answered.total() > 30:
            raise KeyboardInterrupt

    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, concurrency=4)
        monkeypatch.setattr(ReplyCache, "put", put_then_stop)
        with pytest.raises(KeyboardInterrupt):
            judge_answers(answers, "scripted", config, tmp_path / "cache.db")
        monkeypatch.setattr(ReplyCache, "put", put)
        verdicts, _ = judge_answers(answers, "scripted", config, tmp_path / "cache.db")
    assert outcome(verdicts) == expected(answers, config)
    assert sum(count - 1 for count in script.answered.values()) <= 4


def test_requests_in_flight_are_bounded_and_fill_the_bound(tmp_path):
    script = Script(latency_s=0.4)  # in which seven requests can be sent, however busy the machine
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, concurrency=7)
        judge_answers(make_answers(8), "scripted", config, tmp_path / "cache.db")
    assert script.most_in_flight == 7


def test_429s_cut_the_concurrency_and_successes_restore_it():
    async def scenario():
        gate = Gate(64)
        for _ in range(20):
            gate.throttled(0.0)  # one overload, one cut
        assert gate.limit == 32
        for _ in range(5):
            gate._last_cut = float("-inf")
            gate.throttled(0.0)
        assert gate.limit == 1
        for _ in range(64 * 64):
            gate.succeeded()
        assert gate.limit == 64
        gate.throttled(0.2)
        assert 0.1 < gate.pause_s <= 0.2

    asyncio.run(scenario())


@pytest.mark.parametrize(("requests", "tokens", "each"), [(1200, None, 0.05), (None, 60_000, 0.1)])
def test_requests_and_tokens_a_minute_are_kept_to_by_all_who_share_the_cache(
    tmp_path, monkeypatch, requests, tokens, each
):
    config = judge_config(tmp_path, requests_per_minute=requests, tokens_per_minute=tokens)
    monkeypatch.setattr(replies, "time", SimpleNamespace(time=lambda: 1e9))  # all of them come at one moment
    with ReplyCache(tmp_path / "cache.db") as one, ReplyCache(tmp_path / "cache.db") as two:
        paces = [Pace(config, one), Pace(config, two)]
        turns = [paces[number % 2].turn_s(100) for number in range(6)]
        assert turns == pytest.approx([number * each for number in range(6)], abs=1e-6)
        # Another model's are its own.
        assert Pace(judge_config(tmp_path, model="other", requests_per_minute=1), two).turn_s(100) == 0


def test_retry_after_is_read_in_all_its_forms():
    assert retry_after_s({"retry-after": "3"}) == 3
    assert retry_after_s({"retry-after": "0.5"}) == 0.5
    assert retry_after_s({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    date = email.utils.formatdate(time.time() + 10, usegmt=True)
    assert 8 < retry_after_s({"retry-after": date}) <= 10
    for odd in ({}, {"retry-after": "soon"}, {"retry-after": "-"}, {"retry-after-ms": "x"}):
        assert retry_after_s(odd) is None


def test_the_key_reaches_no_file_log_or_message(tmp_path, monkeypatch, capfd, caplog, quick_backoff):
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    messages = []
    cases = [
        Script(key=SECRET, fault_share=0.3, faults=("429", "500", "reset", "truncated")),
        Script(key="other"),
        Script(status=400, message=f"bad {SECRET}"),
        Script(status=500, message=f"bad {SECRET}"),
    ]
    for number, script in enumerate(cases):
        with judge_server(script) as url:
            config = judge_config(tmp_path, base_url=url, api_key_env="JUDGE_KEY", max_retries=2)
            try:
                verdicts, summary = judge_answers(make_answers(20), "scripted", config, tmp_path / f"{number}.db")
                messages.append(f"{summary}{summary.errors}{verdicts}")
            except UserError as error:
                messages.append(repr(error) + repr(error.__cause__))
    assert len(messages) == 4 and "[key]" in messages[2] and "[key]" in messages[3]
    captured = capfd.readouterr()
    for text in (*messages, captured.out, captured.err, caplog.text):
        assert SECRET not in text
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()


def test_the_cache_keeps_the_first_reply_and_all_of_its_fields(tmp_path):
    first = Reply("85", "stop", [("85", -0.1), ("\u2028", -3.0)], "m", None, 3, 1, 0.25, 0.5)
    other = Reply("10", "stop", None, "m", "fp", 3, 1, 0.5, 0.5)
    with ReplyCache(tmp_path / "a" / "cache.db") as one, ReplyCache(tmp_path / "a" / "cache.db") as two:
        one.put("j", "k", first)
        two.put("j", "k", other)
        two.put("j", "l", other)
        assert one.get(["k", "l", "none"]) == {"k": first, "l": other}
        assert one.spent_usd("j") == 1.25 and one.spent_usd("i") == 0.0


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    (tmp_path / "cache.db").write_text("not a database, but long enough to look at" * 50)
    with pytest.raises(UserError, match=r"cache\.db cannot be read because it is no SQLite file"):
        ReplyCache(tmp_path / "cache.db")
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(UserError, match="format 99"):
        ReplyCache(tmp_path / "other.db")


def test_the_estimate_is_what_judging_then_takes(tmp_path):
    answers = make_answers(40)
    prices = {"usd_per_million_input_tokens": 2.5, "usd_per_million_output_tokens": 10.0}
    with judge_server(Script(prompt_tokens=11)) as url:
        config = judge_config(tmp_path, base_url=url, **prices)

        def estimate():
            return estimate_judging("scripted", config, tmp_path / "cache.db", answers, {}, 0)

        before = estimate()
        assert (before.requests, before.cached) == (80, 0) and before.usd <= before.most_usd
        _, first = judge_answers(answers[:15], "scripted", config, tmp_path / "cache.db")
        rest = estimate()
        _, second = judge_answers(answers, "scripted", config, tmp_path / "cache.db")
    assert (rest.requests, rest.cached) == (second.calls, first.calls) == (50, 30)
    assert rest.prompt_tokens == pytest.approx(second.prompt_tokens, rel=0.1)
    assert rest.usd == pytest.approx(second.usd, rel=0.1)
    assert second.usd <= rest.most_usd
    assert "30 cached" in rest.basis


def test_the_estimate_before_sampling_grows_with_questions_and_answers(tmp_path):
    def estimate(unanswered, tokens, **changes):
        config = judge_config(tmp_path, usd_per_million_input_tokens=2.0, **changes)
        return estimate_judging("scripted", config, tmp_path / "cache.db", make_answers(5), unanswered, tokens)

    there, few, many = estimate({}, 100), estimate({"why?": 10}, 100), estimate({"why?": 10, "who?": 10}, 100)
    longer = estimate({"why?": 10}, 200)
    assert (there.requests, few.requests, many.requests) == (10, 30, 50)
    assert many.usd - few.usd == pytest.approx(few.usd - there.usd)
    assert longer.prompt_tokens == pytest.approx(few.prompt_tokens + 20 * 100)
    assert estimate({"why?": 10}, 100, batch=True).usd == pytest.approx(few.usd / 2)
