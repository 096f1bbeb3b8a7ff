"""Faults that users of other software reported, played to the client: none costs a wrong score, a reply or a cent."""

import asyncio
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from aiohttp import web

from pipeline.api import database, held, limits
from pipeline.api.completions import UnusableReplyError, is_another_model, parse_completion
from pipeline.api.faults import retry_after_s
from pipeline.api.local_server import completion, failure
from pipeline.api.proxies import proxy_for
from pipeline.api.replies import ReplyCache
from pipeline.api.transport import AiohttpTransport
from pipeline.common.errors import UserError
from pipeline.judging.protocols import load_protocol
from pipeline.judging.run import judge_answers, refuse_failures
from tests.support.judge_server import Script, judge_config, judge_server, make_answers

SECRET = 'sk-marker+45/67"890'


@pytest.fixture(autouse=True)
def quick_waits(monkeypatch):
    """Waits that suit a test."""
    monkeypatch.setattr(limits, "FIRST_BACKOFF_S", 0.01)


def judged(tmp_path, script, answers=3, **changes):
    """The rows and the summary that answers get from a server of this script."""
    with judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, **{"concurrency": 2, **changes})
        return judge_answers(make_answers(answers), "scripted", config, tmp_path / "cache.db")


def play(script: Script, *replies) -> Script:
    """The script, which gives these replies (JSON or a response) to the first requests."""
    left = list(replies)

    def odd():
        reply = left.pop(0)
        if not left:
            script.odd = None
        return reply if isinstance(reply, web.Response) else web.json_response(reply)

    script.odd = odd
    return script


def said(content="85", finish="stop", usage=None, **message) -> dict:
    payload = completion({"model": "scripted"}, "a prompt", "85")
    payload["choices"][0] |= {"message": {"content": content, **message}, "finish_reason": finish}
    return payload | ({} if usage is None else {"usage": usage})


def kept(tmp_path) -> int:
    with sqlite3.connect(tmp_path / "cache.db") as db:
        return db.execute("SELECT COUNT(*) FROM replies").fetchone()[0]


TRANSIENT = {
    "finish error": said("85", "error"),
    "interrupted": said("85", "insufficient_system_resource"),
    "empty": said(""),
    "null": said(None),
    "a choice's error": {"choices": [{"message": {"content": ""}, "error": {"code": 502, "message": "bad gateway"}}]},
    "429 inside": {"error": {"message": "overloaded", "code": 429}},
    "429 inside, as text": {"error": {"message": "overloaded", "code": "rate_limit_exceeded"}},
    "503 inside": {"code": 503, "message": "overloaded"},
}


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT.keys())
def test_a_fault_inside_http_200_is_asked_again_and_never_kept(tmp_path, fault):
    verdicts, summary = judged(tmp_path, play(Script(), fault, fault))
    assert {verdict.status for verdict in verdicts} <= {"scored", "refusal", "code"}
    assert kept(tmp_path) == summary.calls == 6
    assert summary.throttled + summary.retries == 2


def test_402_inside_http_200_is_an_account_without_credit(tmp_path):
    with pytest.raises(UserError, match="out of credit"):
        judged(tmp_path, play(Script(), {"error": {"message": "pay first", "code": "402"}}))


def test_what_a_filter_withholds_is_an_error_row_with_its_reason(tmp_path):
    script = Script(spared=1, odd=lambda: web.json_response(said("85", "content_filter")))
    verdicts, summary = judged(tmp_path, script)
    assert [verdict.status for verdict in verdicts].count("error") == 3 and kept(tmp_path) == 1
    assert "content filter withheld" in verdicts[1].reason and summary.retries == 0


PRICES = {"usd_per_million_input_tokens": 1.0, "usd_per_million_output_tokens": 6000.0}


def test_usage_is_what_the_total_says_and_a_missing_count_is_not_nothing(tmp_path):
    config = judge_config(tmp_path, **PRICES)

    def usd(**usage):
        return parse_completion(said(usage=usage), config, 0.1).usd

    assert usd(prompt_tokens=1000, completion_tokens=2, total_tokens=1319) == pytest.approx(0.001 + 319 * 0.006)
    assert usd(prompt_tokens=1000, completion_tokens=2, total_tokens=1002) == pytest.approx(0.001 + 2 * 0.006)
    assert usd(prompt_tokens=1000, completion_tokens=2) == pytest.approx(0.001 + 2 * 0.006)
    assert usd(prompt_tokens=1000, total_tokens=1005) == pytest.approx(0.001 + 5 * 0.006)
    assert usd(prompt_tokens=1000) == pytest.approx(0.001 + 10 * 0.006)  # up to its limit
    with pytest.raises(UnusableReplyError) as caught:
        parse_completion(said("", usage={"prompt_tokens": 1000, "completion_tokens": 2}), config, 0.1)
    assert caught.value.usd == pytest.approx(0.001 + 2 * 0.006)


@pytest.mark.parametrize("refusal", [{"error": "overloaded"}, failure(500, "oops"), failure(400, "no")])
def test_what_was_refused_costs_nothing(tmp_path, refusal):
    script = play(Script(prompt_tokens=5), said(usage={"prompt_tokens": 5, "completion_tokens": 0}), refusal)
    judged(tmp_path, script, usd_per_million_input_tokens=1000.0, budget_usd=5.0, concurrency=1)
    with ReplyCache(tmp_path / "cache.db") as cache:
        assert cache.spent_usd("scripted") == pytest.approx(kept(tmp_path) * 0.005)


@pytest.mark.parametrize(("status", "message"), [(403, "flagged"), (400, "Content Exists Risk")])
def test_prompts_that_are_refused_first_are_error_rows_and_the_others_are_judged(tmp_path, status, message):
    answers = make_answers(12)
    protocol = load_protocol(judge_config(tmp_path))
    refused = {
        protocol.request(answer, aspect).body["messages"][0]["content"]
        for answer in answers[:2]
        for aspect in ("alignment", "coherence")
    }
    verdicts, _ = judged(tmp_path, Script(refuse=refused, refuse_status=status, message=message), answers=12)
    assert [verdict.status == "error" for verdict in verdicts] == [True, True] + [False] * 10
    assert f"HTTP {status}: {message}" in verdicts[0].reason
    with pytest.raises(UserError, match=rf"2 of 12 verdicts are error.*HTTP {status}: {message}"):
        refuse_failures(verdicts, 0.1, 0.0, "run r")


def test_when_every_prompt_is_refused_judging_stops_and_says_why(tmp_path):
    script = Script(status=400, message="Content Exists Risk")
    with pytest.raises(UserError, match=r"all 8 requests were refused, .*Content Exists Risk"):
        judged(tmp_path, script, answers=100)
    assert script.seen["400"] == 8


@pytest.mark.parametrize("finish", ["eos_token", "end_turn", "STOP", "", None, "stop"])
def test_a_reply_that_ended_is_read_whatever_its_end_is_called(tmp_path, finish):
    verdicts, _ = judged(tmp_path, Script(odd=lambda: web.json_response(said("85", finish))))
    assert [verdict.alignment for verdict in verdicts] == [85, 85, 85]


def test_an_end_that_is_not_known_is_named(tmp_path):
    script = Script(odd=lambda: web.json_response(said("85", "gave_up")))
    verdicts, _ = judged(tmp_path, script, max_unparsed_retries=0)
    with pytest.raises(UserError, match=r"3 of 3 verdicts are unparsed.*finish_reason is 'gave_up'"):
        refuse_failures(verdicts, 0.0, 0.1, "run r")


@pytest.mark.parametrize("finish", ["max_tokens", "MAX_TOKENS", "length"])
def test_a_reply_that_was_cut_is_taken_as_cut_whatever_that_is_called(tmp_path, finish):
    verdicts, _ = judged(tmp_path, Script(odd=lambda: web.json_response(said("8", finish))), max_unparsed_retries=0)
    assert {verdict.status for verdict in verdicts} == {"unparsed"}


def test_content_in_parts_and_thinking_told_apart_are_read(tmp_path):
    config = judge_config(tmp_path)
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "8"}, {"type": "text", "text": "5"}]
    assert parse_completion(said(parts), config, 0.1).text == "85"
    assert parse_completion(said("85", reasoning_content="30?"), config, 0.1).text == "<think>30?</think>85"
    refusal = parse_completion(said(None, refusal="I won't."), config, 0.1)
    assert (refusal.text, refusal.finish) == ("I won't.", "refusal")
    assert load_protocol(config).read("alignment", refusal).reason == "the judge refused to judge"


def test_a_judge_that_writes_digits_one_by_one_is_refused_before_it_judges(tmp_path):
    script = Script(digits=True)
    with pytest.raises(UserError, match=r"'8' as its first token: its tokenizer writes digits one by one"):
        judged(tmp_path, script, protocol="logprob")
    assert script.seen["answered"] == 1
    script.digits = False  # what it said is known now, and is not asked for again
    with pytest.raises(UserError, match="digits one by one"), judge_server(script) as url:
        config = judge_config(tmp_path, base_url=url, protocol="logprob")
        with ReplyCache(tmp_path / "other.db"):
            pass
        with sqlite3.connect(tmp_path / "cache.db") as db, sqlite3.connect(tmp_path / "other.db") as other:
            (row,) = db.execute("SELECT * FROM replies").fetchall()
            from pipeline.judging.preflight import preflight_request

            key = preflight_request(load_protocol(config)).key
            other.execute(f"INSERT INTO replies VALUES ({','.join('?' * len(row))})", (key, *row[1:]))
        judge_answers(make_answers(2), "scripted", config, tmp_path / "other.db")
    assert script.seen["answered"] == 1


@pytest.mark.parametrize("key", [SECRET, "a+b/c9"])
def test_a_key_is_found_behind_escapes_and_however_short(tmp_path, monkeypatch, capfd, key):
    monkeypatch.setenv("JUDGE_KEY", key)
    escaped = "".join(f"\\u{ord(character):04x}" for character in key)
    body = json.dumps(said("MARK", usage={"prompt_tokens": 1, "completion_tokens": 1})).replace("MARK", escaped)
    refusal = json.dumps({"error": {"message": "MARK", "details": {"key": key}}}).replace("MARK", escaped)
    percent = "".join(f"%{ord(character):02X}" if not character.isalnum() else character for character in key)
    outcomes = []
    for script in (
        Script(odd=lambda: web.Response(body=body.encode(), content_type="application/json")),
        Script(odd=lambda: web.Response(body=refusal.encode(), status=500, content_type="application/json")),
        Script(odd=lambda: web.Response(body=refusal.encode(), content_type="application/json")),
        Script(spared=1, odd=lambda: web.Response(status=307, headers={"Location": f"http://x/?{percent}"})),
    ):
        outcomes.append(judged(tmp_path, script, api_key_env="JUDGE_KEY", max_retries=0, max_unparsed_retries=0))
        assert script.headers_seen[-1]["Authorization"] == f"Bearer {key}"
    captured = capfd.readouterr()
    everything = "".join(map(repr, outcomes)) + captured.out + captured.err
    assert key not in everything and percent not in everything and "[key]" in everything
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or key.encode() not in path.read_bytes()


def test_replies_that_cost_ten_times_the_estimate_pass_the_budget_by_one_at_most(tmp_path):
    config = judge_config(tmp_path)
    prompt = len(load_protocol(config).request(make_answers(1)[0], "coherence").body["messages"][0]["content"].encode())
    dear = 10 * (prompt + 16)
    script = Script(prompt_tokens=dear, latency_s=0.02)
    with pytest.raises(UserError, match="raise budget_usd of scripted"):
        judged(tmp_path, script, answers=400, concurrency=64, usd_per_million_input_tokens=1.0, budget_usd=0.02)
    paid = script.answered.total() * dear / 1e6
    assert paid <= 0.02 + dear / 1e6


def test_a_reply_dearer_than_its_limits_is_a_warning(tmp_path):
    _, summary = judged(tmp_path, Script(prompt_tokens=5000), usd_per_million_input_tokens=1.0)
    assert "times what its prompt and max_reply_tokens allow" in str(summary)


class Raw:
    """A server that answers each request on a connection with bytes of the test's making."""

    def __init__(self, answer):
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self.connections = 0

    def __enter__(self):
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.close()

    def _serve(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection):
        with connection:
            try:
                while request := connection.recv(1 << 20):
                    self._answer(connection, request)
            except OSError:
                return


def http(body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"Content-Type: application/json", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def whole(body: bytes) -> bytes:
    return http(body, b"Content-Length: %d" % len(body))


def test_a_late_reply_is_never_the_next_requests(tmp_path):
    late = threading.Semaphore(0)

    def answer(connection, request):
        said = request.rpartition(b"\r\n\r\n")[2]
        connection.sendall(whole(said))
        time.sleep(0.02)
        try:
            connection.sendall(whole(b"late " + said))
        finally:
            late.release()

    async def scenario(url):
        transport = AiohttpTransport(connections=1, timeout_s=5.0, headers={}, proxy=None)
        replies = []
        for number in range(10):
            replies.append((await transport.send("POST", url, {}, b"%d" % number))[2])
            await asyncio.sleep(0.05 if number % 2 else 0)
            assert late.acquire(timeout=60)  # it has come, and the event loop has not read it, or has closed on it
        await transport.aclose()
        return replies

    with Raw(answer) as server:
        assert asyncio.run(scenario(server.url)) == [b"%d" % number for number in range(10)]
        assert server.connections > 1


def drip(connection, _):
    connection.sendall(http(b"", b"Content-Length: 1000"))
    for _ in range(100):
        connection.sendall(b" ")
        time.sleep(0.05)


def endless(connection, _):
    connection.sendall(http(b"", b"Connection: close"))
    while True:
        connection.sendall(b" " * (1 << 16))


BROKEN = {
    "no length": (lambda connection, _: connection.sendall(http(b"{}", b"Content-Length: abc")), "connection broke"),
    "two lengths": (
        lambda connection, _: connection.sendall(http(b"{}", b"Content-Length: 2", b"Content-Length: 3")),
        "connection broke",
    ),
    "byte by byte": (drip, "no reply within 0.5 s"),
    "endless": (endless, "a reply of more than 4,194,304 bytes"),
    "no HTTP": (lambda connection, _: connection.sendall(b"220 mail ready\r\n"), "connection broke"),
}


@pytest.mark.parametrize(("answer", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_body_that_never_comes_whole_is_one_error_in_bounded_time(tmp_path, answer, reason):
    with Raw(answer) as server:
        config = judge_config(tmp_path, base_url=server.url, timeout_s=0.5 if answer is drip else 20.0, max_retries=1)
        verdicts, summary = judge_answers(make_answers(1), "scripted", config, tmp_path / "cache.db")
    assert verdicts[0].status == "error" and all(reason in error for error in summary.errors.values())


CLIENT = """
import signal, sys
from pathlib import Path
from tests.support.judge_server import judge_config, make_answers
from pipeline.common.signals import end_gently
from pipeline.judging.run import judge_answers

# What a shell gives a terminal's job; and what a script gives a job in the background.
signal.signal(signal.SIGINT, signal.default_int_handler if sys.argv[3] == "SIGINT" else signal.SIG_IGN)
end_gently(pass_on=False)  # as pipeline/__main__.py does
config = judge_config(Path(sys.argv[2]), base_url=sys.argv[1], concurrency=16)
try:
    judge_answers(make_answers(2000), "scripted", config, Path(sys.argv[2]) / "cache.db")
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM)], ids=["Ctrl-C", "SIGTERM"])
def test_ctrl_c_and_sigterm_wait_for_what_is_paid(tmp_path, signals):
    script = Script(latency_s=0.3)
    with judge_server(script) as url:
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, url, str(tmp_path), signals[0].name],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while script.answered.total() < 40:
            assert client.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        for each in signals:
            client.send_signal(each)
            time.sleep(0.05)
        message = client.communicate(timeout=60)[1]
    assert client.returncode == 130 and "replies in flight are waited for" in message
    assert kept(tmp_path) == script.answered.total() < 4000


def test_a_full_disk_loses_no_reply_that_is_paid(tmp_path, monkeypatch):
    prepare, store = database.Database._prepare, held.HeldReplies.store

    def prepare_then(self):
        prepare(self)
        self.connection.execute("PRAGMA max_page_count = 30")

    async def make_room(self):
        if self._held:
            self._cache._database.connection.execute("PRAGMA max_page_count = 100000")
        await store(self)

    monkeypatch.setattr(database.Database, "_prepare", prepare_then)
    monkeypatch.setattr(held.HeldReplies, "store", make_room)
    script = Script(latency_s=0.02)
    with pytest.raises(UserError, match="disk is full"):
        judged(tmp_path, script, answers=1000, concurrency=32)
    assert kept(tmp_path) == script.answered.total() > 32


@pytest.mark.parametrize("status", [401, 404])
def test_one_401_or_404_among_replies_is_asked_again_and_many_stop_with_the_reason(tmp_path, status):
    _, summary = judged(tmp_path, play(Script(), said("85"), failure(status, "hiccup")), concurrency=1)
    assert summary.retries == 1 and not summary.errors
    script = Script(spared=1, odd=lambda: failure(status, "the key was revoked"))
    with pytest.raises(UserError, match=rf"had answered, and now: .*HTTP {status}: the key was revoked"):
        judged(tmp_path / "other", script, max_retries=2) if (tmp_path / "other").mkdir() is None else None


def test_a_reply_of_another_model_is_a_warning(tmp_path):
    _, summary = judged(tmp_path, Script(odd=lambda: web.json_response(said() | {"model": "tiny-1b"})))
    assert "warning: scripted was asked for, and 6 replies say that another model made them" in str(summary)
    for asked, answered, other in [
        ("gpt-4o", "gpt-4o-2024-08-06", False),
        ("openai/gpt-4o", "gpt-4o", False),
        ("deepseek-chat", "deepseek-chat", False),
        ("deepseek-chat", "deepseek-v3", True),
        ("scripted", "", False),
    ]:
        assert is_another_model(asked, answered) == other


def test_retry_after_is_read_on_the_servers_clock():
    now = time.time() + 7200  # it is two hours ahead
    headers = {"date": formatdate(now, usegmt=True), "retry-after": formatdate(now + 20, usegmt=True)}
    assert retry_after_s(headers) == 20
    assert retry_after_s(headers | {"date": "yesterday"}) > 7000


def test_no_password_or_organisation_of_the_environment_reaches_an_endpoint(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ORGANIZATION"):
        monkeypatch.setenv(name, "org-private")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Internal: org-private")
    for batch in (False, True):
        script = Script(key=SECRET)
        verdicts, _ = judged(tmp_path, script, answers=2 + batch, api_key_env="JUDGE_KEY", batch=batch)
        assert "error" not in {verdict.status for verdict in verdicts}
        assert script.headers_seen and "org-private" not in str(script.headers_seen)
        assert "hunter2" not in str(script.headers_seen)


PROXIES = [
    ({"HTTPS_PROXY": "proxy.test:3128"}, "http://proxy.test:3128"),
    ({"https_proxy": "http://proxy.test:3128"}, "http://proxy.test:3128"),
    ({"ALL_PROXY": "http://proxy.test:3128"}, "http://proxy.test:3128"),
    ({"ALL_PROXY": "socks5://other.test:1", "HTTPS_PROXY": "proxy.test:3128"}, "http://proxy.test:3128"),
    ({"HTTPS_PROXY": "proxy.test:3128", "NO_PROXY": "judge.test"}, None),
    ({"HTTP_PROXY": "proxy.test:3128"}, None),
    ({}, None),
]


@pytest.fixture
def no_proxies(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(("variables", "proxy"), PROXIES)
def test_the_proxy_is_the_environments(monkeypatch, no_proxies, variables, proxy):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_for("https://judge.test/v1") == proxy
    assert proxy_for("http://127.0.0.1:8000/v1") is None


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"ALL_PROXY": "socks5://me:hunter2@proxy.test:1080"},  # pragma: allowlist secret
            "ALL_PROXY is a socks5 proxy",
        ),
        (
            {"HTTPS_PROXY": "http://me:hunter2@proxy.test:abc"},  # pragma: allowlist secret
            "HTTPS_PROXY is no address of a proxy",
        ),
        (
            {"HTTPS_PROXY": "http://me:hunter2@proxy.test:99999"},  # pragma: allowlist secret
            "HTTPS_PROXY is no address of a proxy",
        ),
        ({"HTTPS_PROXY": "http://"}, "HTTPS_PROXY is no address of a proxy"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(monkeypatch, no_proxies, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said) as refusal:
        proxy_for("https://judge.test/v1")
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_proxy_carries_the_requests_and_no_netrc_entry_takes_the_keys_place(
    tmp_path, monkeypatch, no_proxies, scheme
):
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    with judge_server(Script(key=SECRET)) as url:
        monkeypatch.setenv("HTTP_PROXY", scheme + url.removeprefix("http://").removesuffix("/v1"))
        config = judge_config(tmp_path, base_url="http://judge.test/v1", api_key_env="JUDGE_KEY")
        verdicts, _ = judge_answers(make_answers(3), "scripted", config, tmp_path / "cache.db")
    assert "error" not in {verdict.status for verdict in verdicts}


OLD = """
CREATE TABLE replies (key TEXT PRIMARY KEY, judge TEXT NOT NULL, text TEXT NOT NULL, finish TEXT NOT NULL,
    top_logprobs TEXT, model TEXT NOT NULL, fingerprint TEXT, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, usd REAL NOT NULL, seconds REAL NOT NULL,
    created TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))) WITHOUT ROWID;
CREATE TABLE batched (key TEXT PRIMARY KEY, judge TEXT NOT NULL, batch TEXT NOT NULL,
    reserved_nano_usd INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE spending (judge TEXT PRIMARY KEY, nano_usd INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO replies (key, judge, text, finish, model, prompt_tokens, completion_tokens, usd, seconds) VALUES
    ('a', 'j', '85', 'stop', 'm', 1, 1, 0.25, 0.1), ('b', 'j', '', 'error', 'm', 1, 1, 0.25, 0.1),
    ('c', 'j', '8', 'insufficient_system_resource', 'm', 1, 1, 0.25, 0.1),
    ('d', 'j', '8', 'length', 'm', 1, 1, 0.25, 0.1);
INSERT INTO spending VALUES ('i', 5000000000);
PRAGMA user_version=2;
"""


def test_a_cache_of_the_format_before_keeps_its_replies_but_the_faults_and_its_accounts(tmp_path):
    with sqlite3.connect(tmp_path / "cache.db") as db:
        db.executescript(OLD)
    with ReplyCache(tmp_path / "cache.db") as cache:
        assert cache.get("abcd").keys() == {"a", "d"}
        assert (cache.spent_usd("j"), cache.spent_usd("i")) == (1.0, 5.0)
