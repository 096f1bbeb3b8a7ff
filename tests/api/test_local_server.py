"""The local judge: a function of the prompt, behind HTTP, in a process that ends with its parent."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.api.local_server import bind, serve
from pipeline.common.errors import UserError
from pipeline.judging.protocols import load_protocol
from pipeline.judging.run import judge_answers
from tests.support.judge_server import judge_config, make_answers, scripted

PARENT = """
import time
from pipeline.api.local_server import serve
with serve("tests.support.judge_server:scripted") as url:
    print(url, flush=True)
    time.sleep(60)
"""


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_function_judges_over_http(tmp_path):
    answers = make_answers(30)
    with serve("tests.support.judge_server:scripted") as url:
        config = judge_config(tmp_path, base_url=url)
        verdicts, summary = judge_answers(answers, "rule", config, tmp_path / "cache.db")
        port = int(url.split(":")[2].split("/")[0])
        assert listens(port)
    assert not listens(port)
    request = load_protocol(config).request(answers[0], "coherence")
    assert verdicts[0].coherence == float(scripted(request.body["messages"][0]["content"]))
    assert summary.calls == 60 and not summary.errors


def test_a_port_in_use_is_refused_by_number():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}: another program is using it"):
            bind(port)


def test_a_given_port_is_taken_and_given_back():
    port = port_that_is_given_to_nobody()
    for _ in range(2):
        with serve("tests.support.judge_server:scripted", port) as url:
            assert url == f"http://127.0.0.1:{port}/v1"


def port_that_is_given_to_nobody() -> int:
    """A free port below those that the system gives to whoever asks for any."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with contextlib.suppress(UserError), bind(port):
            return port
    raise AssertionError("no port is free")


@pytest.mark.parametrize("reply", ["no.such.module:reply", "judge_server:no_such_function"])
def test_a_function_that_is_not_there_is_refused(reply):
    with pytest.raises(UserError, match="did not start"), serve(reply):
        pass


def test_the_server_ends_when_its_parent_is_killed():
    tests = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"},
    )
    assert parent.stdout is not None
    with parent.stdout:
        port = int(parent.stdout.readline().split(":")[2].split("/")[0])
        assert listens(port)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while listens(port):
        assert time.monotonic() < deadline, "the server outlives its parent"
        time.sleep(0.05)
