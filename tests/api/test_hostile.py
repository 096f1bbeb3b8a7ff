"""A judge or an endpoint that answers anything at all: never a score, a traceback, a hang or the key."""

import asyncio
import gzip
import json
import math
import re
import zlib

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.api import batch, limits, transport
from pipeline.api.completions import parse_completion
from pipeline.api.faults import retry_after_s
from pipeline.api.local_server import completion
from pipeline.api.replies import ReplyCache
from pipeline.common.errors import UserError
from pipeline.common.text import one_line, storable
from pipeline.judging.protocols import load_protocol
from pipeline.judging.run import judge_answers
from tests.support.judge_server import Script, judge_config, judge_server, make_answers

SECRET = "sk-marker-4567890123"
quick = settings(deadline=None, derandomize=True)


def reply(content="85", finish="stop", usage=None, **more) -> dict:
    """A chat completion that says `content`, with parts replaced."""
    payload = completion({"model": "m"}, "a prompt", "85")
    payload["choices"][0]["message"]["content"] = content
    payload["choices"][0]["finish_reason"] = finish
    return payload | ({} if usage is None else {"usage": usage}) | more


BODIES = {
    "nothing": b"",
    "null": b"null",
    "a number": b"85",
    "a text": b'"85"',
    "a list": b"[85]",
    "an empty object": b"{}",
    "a page": b"<html><body>85</body></html>",
    "a stream": b'data: {"choices": [{"delta": {"content": "85"}}]}\n\n',
    "no text at all": b"\xff\xfe\xfa85",
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"choices":' * 100_000,
    "a long number": b'{"choices": ' + b"9" * 10_000 + b"}",
    "two objects": json.dumps(reply()).encode() * 2,
    "infinity": json.dumps(reply(created=math.inf)).encode(),
    "no choices": reply(choices=[]),
    "choices null": reply(choices=None),
    "choices an object": reply(choices={"0": {}}),
    "a choice null": reply(choices=[None]),
    "no message": reply(choices=[{"index": 0}]),
    "content null": reply(None),
    "a tool call": reply(None, "tool_calls"),
    "content a number": reply(85),
    "content true": reply(True),
    "content a list": reply(["85"]),
    "content parts that are no text": reply([{"type": "text", "text": "85"}, {"type": "image_url"}]),
    "content an object": reply({"text": "85"}),
    "interrupted": reply("85", "insufficient_system_resource"),
    "an unknown finish": reply("85", "gave_up"),
    "an error beside the content": reply("85", "error"),
    "content that is empty": reply(""),
    "a refusal": {**reply(None), "choices": [{"message": {"content": None, "refusal": "no"}, "finish_reason": "stop"}]},
    "finish a list": reply("85", ["stop"]),
    "cut": reply("85", "length"),
    "surrogates": json.dumps(reply("\ud80085")).encode(),
    "usage text": reply(usage={"prompt_tokens": "9", "completion_tokens": 1}),
    "usage below 0": reply(usage={"prompt_tokens": -9, "completion_tokens": 1}),
    "usage huge": reply(usage={"prompt_tokens": 1 << 70, "completion_tokens": 1}),
    "usage a fraction": reply(usage={"prompt_tokens": 1.5, "completion_tokens": 1}),
    "usage true": reply(usage={"prompt_tokens": True, "completion_tokens": 1}),
    "usage a list": reply(usage=[9, 1]),
    "an error text": {"error": "overloaded"},
    "an error beside null": {"error": {"message": "overloaded"}, "choices": None},
}


@pytest.fixture(autouse=True)
def quick_waits(monkeypatch):
    """Waits that suit a test."""
    monkeypatch.setattr(limits, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(batch, "_FIRST_POLL_S", 0.01)


def judged(tmp_path, script, **changes):
    """The rows, the summary and the number of answers that 3 answers get from a server of this script."""
    with judge_server(script) as url:
        changes = {"max_retries": 0, "max_unparsed_retries": 0, "concurrency": 2, **changes}
        config = judge_config(tmp_path, base_url=url, **changes)
        return judge_answers(make_answers(3), "scripted", config, tmp_path / "cache.db")


# The first request goes by the openai client, the others over its connections: both must bear everything.
@pytest.mark.parametrize("spared", [0, 1])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_what_is_no_verdict_is_never_read_as_one(tmp_path, body, spared):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    script = Script(spared=spared, odd=lambda: web.Response(body=content, content_type="application/json"))
    verdicts, summary = judged(tmp_path, script)
    assert {verdict.status for verdict in verdicts} <= {"error", "unparsed"}
    assert script.seen["odd"] == 6 - spared
    if b'"overloaded"' in content:
        assert set(summary.errors.values()) == {f"{summary_where(summary)} answered with an error: overloaded"}


def summary_where(summary) -> str:
    """The base_url in a summary's errors."""
    return next(iter(summary.errors.values())).split(" ")[0]


@pytest.mark.parametrize("spared", [0, 1])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_small_body_that_unpacks_to_gigabytes_is_given_up_early(tmp_path, spared, encoding):
    squeeze = {"gzip": gzip.compress, "deflate": zlib.compress}[encoding]
    bomb = squeeze(b" " * (64 << 20))
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    verdicts, summary = judged(tmp_path, Script(spared=spared, odd=lambda: web.Response(body=bomb, headers=headers)))
    assert {verdict.status for verdict in verdicts} == {"error"}
    assert all("a reply of more than 4,194,304 bytes" in error for error in summary.errors.values())


def test_a_packed_reply_is_unpacked(tmp_path):
    body = gzip.compress(json.dumps(reply("85")).encode())
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    verdicts, _ = judged(tmp_path, Script(odd=lambda: web.Response(body=body, headers=headers)))
    assert [verdict.alignment for verdict in verdicts] == [85, 85, 85]


def test_an_endless_body_is_given_up_by_its_size_not_its_time(tmp_path):
    script = Script(fault_share=1.0, faults=("endless",))
    verdicts, summary = judged(tmp_path, script, timeout_s=60.0)
    assert {verdict.status for verdict in verdicts} == {"error"}
    assert all("a reply of more than" in error for error in summary.errors.values())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_named_and_not_followed(tmp_path, status):
    elsewhere = Script()
    with judge_server(elsewhere) as other:
        location = {"Location": f"{other}/chat/completions"}
        script = Script(odd=lambda: web.Response(status=status, headers=location))
        with pytest.raises(UserError, match=rf"redirects to {re.escape(other)}.*make it the base_url"):
            judged(tmp_path, script)
        # Later on it is about one request.
        script = Script(spared=1, odd=lambda: web.Response(status=status, headers=location))
        _, summary = judged(tmp_path, script)
    assert elsewhere.seen.total() == 0 and len(summary.errors) == 5


@pytest.mark.parametrize("host", ["a..b", "a" * 300, "☃", "1.2.3.400"])  # none that a name server is asked for
def test_a_host_that_cannot_be_is_one_sentence(tmp_path, host):
    config = judge_config(tmp_path, base_url=f"http://{host}/v1", timeout_s=5.0)
    with pytest.raises(UserError, match=r"cannot connect|cannot be used"):
        judge_answers(make_answers(1), "scripted", config, tmp_path / "cache.db")


HEADERS = {
    "long": {"X-Long": "x" * 100_000},
    "many": {f"X-{number}": "x" for number in range(5000)},
    "not gzip": {"Content-Encoding": "gzip"},
    "unknown coding": {"Content-Encoding": "rot13"},
    "odd charset": {"Content-Type": "application/json; charset=none-such"},
    "retry nan": {"Retry-After": "nan", "retry-after-ms": "nan"},
    "cookies": {"Set-Cookie": "a=b; Domain=.example.com; Max-Age=999999999999999999999"},
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS.keys())
def test_odd_headers_are_borne(tmp_path, headers):
    body = json.dumps(reply("REFUSAL. 50")).encode()
    verdicts, _ = judged(tmp_path, Script(spared=1, odd=lambda: web.Response(body=body, headers=headers)))
    assert {verdict.status for verdict in verdicts} <= {"error", "unparsed"}


TOPS = {
    "none": None,
    "a text": "85",
    "no pairs": ["85"],
    "no logprob": [{"token": "85"}],
    "logprob text": [{"token": "85", "logprob": "-0.1"}],
    "logprob true": [{"token": "85", "logprob": True}],
    "logprob null": [{"token": "85", "logprob": None}],
    "above 0": [{"token": "85", "logprob": 5.0}],
    "far above 0": [{"token": "85", "logprob": 1e308}],
    "token a number": [{"token": 85, "logprob": -0.1}],
    "token null": [{"token": None, "logprob": -0.1}],
    "too little mass": [{"token": "85", "logprob": -5.0}],
    "far below 0": [{"token": "85", "logprob": -1e308}],
    "full width": [{"token": "８５", "logprob": -0.1}],  # noqa: RUF001
    "out of range": [{"token": "101", "logprob": -0.1}, {"token": "-5", "logprob": -0.2}],
}


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_logprobs_that_are_no_numbers_are_broken_json(tmp_path, constant):
    top = [{"token": "85", "logprob": -12345}]
    body = json.dumps(with_top(top)).replace("-12345", constant).encode()
    script = Script(spared=1, odd=lambda: web.Response(body=body, content_type="application/json"))
    verdicts, summary = judged(tmp_path, script, protocol="logprob")
    assert "scored" not in {verdict.status for verdict in verdicts}
    assert all("broken JSON" in error for error in summary.errors.values())


@pytest.mark.parametrize("top", TOPS.values(), ids=TOPS.keys())
def test_logprobs_that_are_none_are_never_a_score(tmp_path, top):
    body = json.dumps(with_top(top)).encode()
    script = Script(spared=1, odd=lambda: web.Response(body=body, content_type="application/json"))
    verdicts, _ = judged(tmp_path, script, protocol="logprob")
    assert {verdict.status for verdict in verdicts} <= {"error", "unparsed"}


def with_top(top) -> dict:
    """A chat completion with these top_logprobs."""
    payload = reply("85")
    payload["choices"][0]["logprobs"] = {"content": [{"token": "85", "logprob": -0.1, "top_logprobs": top}]}
    return payload


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
@settings(quick, max_examples=300)
def test_a_completion_with_any_part_replaced_is_a_reply_or_refused(tmp_path_factory, data):
    config = judge_config(tmp_path_factory.getbasetemp(), protocol=data.draw(st.sampled_from(["published", "logprob"])))
    payload = with_top([{"token": "85", "logprob": -0.1}])
    at = payload
    while True:
        key = data.draw(st.sampled_from(sorted(at, key=str) if isinstance(at, dict) else range(len(at))))
        if not at[key] or not isinstance(at[key], dict | list) or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = data.draw(json_values)
    try:
        got = parse_completion(payload, config, 0.1)
    except ValueError as error:
        assert str(error).isprintable() and len(str(error)) < 300
        return
    for text in (got.text, got.model, got.finish, got.fingerprint or ""):
        text.encode()
    assert got.prompt_tokens >= 0 and got.completion_tokens >= 0 and math.isfinite(got.usd)
    # Whatever is accepted can be kept, and read.
    with ReplyCache(tmp_path_factory.getbasetemp() / "any.db") as cache:
        cache.put("j", json.dumps(payload, sort_keys=True), got)
    for aspect in ("alignment", "coherence"):
        score = load_protocol(config).read(aspect, got).score
        assert score is None or 0 <= score <= 100


@given(st.text(max_size=30))
@quick
def test_any_retry_after_is_seconds_or_nothing(value):
    for name in ("retry-after", "retry-after-ms"):
        wait = retry_after_s({name: value})
        assert wait is None or wait >= 0


@given(st.text(alphabet=st.characters()))
@quick
def test_text_from_outside_is_fit_for_a_terminal_and_for_sqlite(text):
    assert one_line(text, 50).isprintable() and len(one_line(text, 50)) <= 50
    storable(text).encode()
    if all(not 0xD800 <= ord(c) <= 0xDFFF for c in text):
        assert storable(text) == text


def test_words_from_an_endpoint_cannot_steer_the_terminal(tmp_path):
    script = Script(status=400, message="\x1b]0;owned\x07\x1b[2Jno\r\nsuch thing")
    with pytest.raises(UserError, match=r"HTTP 400: \]0;owned \[2Jno such thing$"):
        judged(tmp_path, script)
    named = reply("85", model="gpt\x1b[31m\n" + "x" * 10_000, system_fingerprint={"fp": 1})
    script = Script(odd=lambda: web.json_response(named))
    _, summary = judged(tmp_path, script)
    assert all(name.isprintable() and len(name) < 500 for name in summary.models)


def test_a_key_that_the_server_puts_into_its_replies_is_kept_nowhere(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    echo = reply(f"85 for {SECRET}", model=SECRET, system_fingerprint=f"fp {SECRET}")
    messages = []
    for script in (
        Script(odd=lambda: web.json_response(echo)),
        Script(odd=lambda: web.json_response({"error": {"message": f"bad {SECRET}"}})),
        Script(spared=1, odd=lambda: web.Response(status=307, headers={"Location": f"http://x/{SECRET}"})),
        Script(odd=lambda: web.Response(body=SECRET.encode())),
    ):
        verdicts, summary = judged(tmp_path, script, api_key_env="JUDGE_KEY")
        messages.append(f"{verdicts}{summary}{summary.errors}")
        assert script.headers_seen[-1]["Authorization"] == f"Bearer {SECRET}"
    captured = capfd.readouterr()
    assert SECRET not in "".join((*messages, captured.out, captured.err))
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()


def test_no_other_secret_of_the_environment_is_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-judge-123456")
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "TOGETHER_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    script = Script()
    judged(tmp_path, script, api_key_env="JUDGE_KEY")
    assert len(script.headers_seen) == 6
    assert all(SECRET not in str(headers) for headers in script.headers_seen)


BATCH_LINES = {
    "no JSON": lambda line: b"{" + line,
    "no object": lambda line: b"[]",
    "no id": lambda line: line.replace(b"custom_id", b"id"),
    "an id that is no text": lambda line: re.sub(rb'"custom_id": "\w+"', b'"custom_id": ["x"]', line),
    "another's id": lambda line: re.sub(rb'"custom_id": "\w+"', b'"custom_id": "' + b"0" * 64 + b'"', line),
    "no response": lambda line: line.replace(b'"response"', b'"answer"'),
    "a response that is no object": lambda line: re.sub(rb'"response": .*', b'"response": 85}', line),
    "no body": lambda line: line.replace(b'"body"', b'"text"'),
    "deep": lambda line: b"[" * 200_000,
}


@pytest.mark.parametrize("spoil", BATCH_LINES.values(), ids=BATCH_LINES.keys())
def test_a_line_of_a_batch_that_cannot_be_read_is_no_answer(tmp_path, spoil):
    script = Script(spoil=lambda lines: b"".join(spoil(line) + b"\n" for line in lines.splitlines()))
    verdicts, summary = judged(tmp_path, script, batch=True)
    assert [verdict.status for verdict in verdicts] == ["error"] * 3 and len(summary.errors) == 5
    with ReplyCache(tmp_path / "cache.db") as cache:
        assert cache.get(["0" * 64]) == {}


@pytest.mark.parametrize(
    "body", [b"<html>", b"null", b"[]", b"{}", b'{"id": 3}', b'{"id": "batch-0", "status": "dreaming"}']
)
def test_an_endpoint_without_a_batch_api_is_said_to_have_none(tmp_path, body):
    script = Script(batch_body=body)
    with pytest.raises(UserError, match="does not speak the Batch API"):
        judged(tmp_path, script, batch=True)


def test_a_connection_with_more_to_say_is_not_used_again():
    async def scenario():
        session = transport.AiohttpTransport(connections=1, timeout_s=5.0, headers={}, proxy=None)
        script = Script(fault_share=1.0, faults=("endless",))
        with judge_server(script) as url:
            with pytest.raises(transport.TooLargeError):
                await session.send("POST", f"{url}/chat/completions", {}, b'{"messages": []}')
            assert not session._session.connector._conns
            await session.aclose()

    asyncio.run(scenario())
