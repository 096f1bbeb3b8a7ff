"""Money: the cap of a judge holds over processes side by side and over killed ones."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.api.completions import Reply, most_prompt_tokens
from pipeline.api.replies import Claim, ReplyCache
from tests.support.judge_server import Script, judge_server, make_answers

LIMIT_S = 120
TOKENS, USD_PER_MILLION = 10, 1000.0
PRICE = TOKENS * USD_PER_MILLION / 1e6
CLIENT = """
import sys
from pathlib import Path
from tests.support.judge_server import judge_config, make_answers
from pipeline.common.errors import UserError
from pipeline.judging.run import judge_answers

url, folder, cache, first, budget = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
config = judge_config(
    folder, base_url=url, concurrency=8, usd_per_million_input_tokens=1000.0, budget_usd=float(budget)
)
try:
    judge_answers(make_answers(1000)[first:first + 200], "scripted", config, cache)
except UserError as error:
    sys.exit(str(error))
"""


def start(url: str, folder: Path, cache: Path, first: int, budget: float) -> subprocess.Popen:
    """A client of 400 requests, from answer `first` on, in a process of its own."""
    folder.mkdir(exist_ok=True)
    tests = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, url, str(folder), str(cache), str(first), str(budget)],
        env=os.environ | {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"},
        stderr=subprocess.PIPE,
        text=True,
    )


def spent(path: Path) -> float:
    with ReplyCache(path) as cache:
        return cache.spent_usd("scripted")


def test_three_processes_side_by_side_stay_within_one_budget(tmp_path):
    script = Script(prompt_tokens=TOKENS, latency_s=0.01)
    cache, budget = tmp_path / "cache.db", 3.0
    with judge_server(script) as url:
        clients = [start(url, tmp_path / str(first), cache, first, budget) for first in (0, 200, 400)]
        messages = [client.communicate(timeout=LIMIT_S)[1] for client in clients]
    # 1,200 requests were to be asked, 400 by each; 300 could be paid for.
    assert all("raise budget_usd of scripted" in message for message in messages)
    paid = script.answered.total() * PRICE
    assert 0.9 * budget < paid <= budget
    assert spent(cache) == pytest.approx(paid)


def test_what_a_killed_process_had_in_flight_counts_as_paid(tmp_path):
    script = Script(prompt_tokens=TOKENS)
    cache, budget = tmp_path / "cache.db", 4.0
    with judge_server(script) as url:
        start(url, tmp_path / "a", cache, 0, 0.5).communicate(timeout=LIMIT_S)
        before, asked = spent(cache), script.answered.total()
        script.latency_s = 0.5
        client = start(url, tmp_path / "a", cache, 0, budget)
        deadline = time.monotonic() + LIMIT_S
        while script.answered.total() < asked + 1 or spent(cache) < before + PRICE:
            assert client.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        client.send_signal(signal.SIGKILL)
        client.communicate()
        time.sleep(2 * script.latency_s)  # the endpoint answers, and charges, all the same
        assert spent(cache) >= script.answered.total() * PRICE
        script.latency_s = 0.0
        message = start(url, tmp_path / "b", cache, 0, budget).communicate(timeout=LIMIT_S)[1]
    paid = script.answered.total() * PRICE
    assert "raise budget_usd" in message or paid >= 400 * PRICE
    assert paid <= spent(cache) <= budget
    assert spent(cache) - paid <= 8 * max_usd() + 1e-6


def max_usd() -> float:
    """The most that one of the requests may cost, as the client works it out."""
    from tempfile import TemporaryDirectory

    from pipeline.judging.protocols import load_protocol
    from tests.support.judge_server import judge_config

    with TemporaryDirectory() as folder:
        protocol = load_protocol(judge_config(Path(folder)))
    return max(most_prompt_tokens(protocol.request(answer, "coherence")) for answer in make_answers(200)) / 1000


amounts = st.floats(0, 1).map(lambda usd: round(usd, 6))
steps = st.lists(st.tuples(st.sampled_from(["answer", "refuse", "lose", "die"]), amounts, amounts), max_size=12)


@given(steps, st.floats(0, 3))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_the_account_is_what_was_paid_and_what_may_have_been(tmp_path_factory, steps, cap):
    path = tmp_path_factory.mktemp("account") / "cache.db"
    account = 0.0
    with ReplyCache(path) as one, ReplyCache(path) as two:
        for number, (end, most, share) in enumerate(steps):
            cache = (one, two)[number % 2]
            granted = cache.claim("j", str(number), most, cap) is Claim.OURS
            assert granted == (account + most <= cap + 1e-6) or abs(account + most - cap) < 1e-6
            if not granted:
                continue
            cost = most * share
            if end == "answer":
                cache.put("j", str(number), Reply("1", "stop", None, "m", None, 1, 1, cost, 0.1), most)
            elif end == "refuse":
                cache.give_back("j", most)
            account += {"answer": cost, "refuse": 0.0}.get(end, most)
            assert one.spent_usd("j") == pytest.approx(account, abs=1e-6) == two.spent_usd("j")
            assert one.spent_usd("j") <= cap + 1e-6
        assert one.spent_usd("another") == 0.0


def test_what_was_spent_without_a_budget_counts_once_there_is_one(tmp_path):
    reply = Reply("1", "stop", None, "m", None, 1, 1, 0.25, 0.1)
    with ReplyCache(tmp_path / "cache.db") as cache:
        cache.put("j", "a", reply)
        cache.put("j", "b", reply)
        claims = [cache.claim("j", key, 0.3, 1.2) for key in "cde"]
        assert claims == [Claim.OURS, Claim.OURS, Claim.TOO_DEAR]
        cache.put("j", "c", reply, 0.3)
        # Two processes asked the same: the first reply is kept, both were paid for.
        cache.put("j", "c", reply, 0.3)
        assert cache.spent_usd("j") == pytest.approx(1.0)
        assert len(cache.get(["a", "b", "c"])) == 3
