"""A judge that the stage serves itself, through a `vllm` (tests/support/fake_vllm.py) that behaves badly."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from functools import partial

import psutil
import pytest
from aiohttp import web

from pipeline.api import model_server
from pipeline.api.config import Serve
from pipeline.api.local_server import ChatServer, bind
from pipeline.common.errors import UserError
from pipeline.params.judges import open_judge
from tests.support.checkout import REPOSITORY
from tests.support.fake_vllm import put_on_path
from tests.support.judge_server import judge_config, make_answers, scripted, served
from tests.support.processes import ended

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SERVE = {"revision": COMMIT, "arguments": {"max_model_len": 4096, "enforce-eager": True}}


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """A folder to work in, and a function that puts a `vllm` of that behaviour on PATH."""
    monkeypatch.chdir(tmp_path)
    return partial(put_on_path, tmp_path, monkeypatch)


def judged(tmp_path, **changes):
    config = judge_config(tmp_path, model="owner/judge", serve=SERVE, **changes)
    with open_judge("local", config) as ask:
        return ask(make_answers(4))


def starts(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def gone(processes):
    left = []
    for pid in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.append(psutil.Process(pid))
    return ended(left)


def test_a_judge_is_served_while_it_is_asked_and_not_where_all_is_known(tmp_path, vllm, capsys):
    log = vllm("slow clings")
    verdicts = judged(tmp_path)
    assert {verdict.alignment for verdict in verdicts} == {85.0}
    ((start),) = starts(log)
    told = start["told"]
    assert told[:2] == ["serve", "owner/judge"] and told[told.index("--revision") + 1] == COMMIT
    assert told[told.index("--max-model-len") + 1] == "4096" and "--enforce-eager" in told
    assert gone(start["processes"]), "it ignored SIGTERM, and lives on"
    output = capsys.readouterr()
    assert "vllm 0.0-fake is ready after" in output.err and f"answered by owner/judge@{COMMIT[:12]}+" in output.out
    assert "INFO vllm starts" in (tmp_path / ".cache/vllm/local.log").read_text()
    assert judged(tmp_path) == verdicts and len(starts(log)) == 1, "all was known"


def test_a_crash_at_the_start_is_said_with_its_words(tmp_path, vllm):
    log = vllm("crash clings")
    with pytest.raises(UserError, match=r"status 1; its last words: ValueError: No available memory .*vllm/local.log"):
        judged(tmp_path)
    assert gone(starts(log)[0]["processes"])


def test_a_death_while_it_is_asked_is_the_reason(tmp_path, vllm):
    log = vllm("dies clings")
    with pytest.raises(UserError, match=r"status 7; its last words: RuntimeError: Engine core died"):
        judged(tmp_path, max_retries=1)
    assert gone(starts(log)[0]["processes"]), "vllm#55510: its engine outlives a server that was killed"


def test_what_is_not_ready_in_time_is_ended(tmp_path, vllm):
    log = vllm("slow clings")
    server = model_server.serve_model("local", "owner/judge", Serve(revision=COMMIT, start_s=0.1), "name")
    with pytest.raises(UserError, match=r"not ready after 0 s .*start_s"), server:
        pass
    assert gone(starts(log)[0]["processes"] if log.exists() else [])


class Healthy(ChatServer):
    """Somebody else's server of models."""

    async def handle(self, request):
        if request.method == "GET":
            return web.json_response({"object": "list", "data": [{"id": "another-model"}]})
        return await super().handle(request)


def test_somebody_elses_server_at_the_port_is_not_asked(tmp_path, vllm, monkeypatch):
    """The port was free when it was chosen. Another server has it now, healthy and with models of its own."""
    log = vllm("")
    with served(Healthy(scripted)) as taken:
        ports = iter([int(taken.rpartition(":")[2].removesuffix("/v1"))])
        free = bind

        class Chosen:
            def __init__(self, port):
                self.port = next(ports, None)
                self.socket = free(0)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.socket.close()

            def getsockname(self):
                return ("127.0.0.1", self.port) if self.port else self.socket.getsockname()

        monkeypatch.setattr(model_server, "bind", Chosen)
        assert {verdict.alignment for verdict in judged(tmp_path)} == {85.0}
    assert len(starts(log)) == 2


def test_it_ends_with_a_killed_stage(tmp_path, vllm):
    log = vllm("clings")
    script = (
        "import time; from pipeline.api.model_server import serve_model; from pipeline.api.config import Serve\n"
        f"with serve_model('local', 'owner/judge', Serve(revision='{COMMIT}'), 'name'):\n    print('up', flush=True)\n"
        "    time.sleep(60)\n"
    )
    names = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([sys.executable, "-c", script], env=names, stdout=subprocess.PIPE) as stage:
        assert stage.stdout.readline() == b"up\n"
        children = psutil.Process(stage.pid).children(recursive=True)
        stage.send_signal(signal.SIGKILL)
    assert len(children) == 3 and ended(children)
    assert gone(starts(log)[0]["processes"])


def test_without_vllm_and_with_an_address_of_its_own_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match="needs vllm, which is not installed"):
        judged(tmp_path)
    with pytest.raises(UserError, match="leave out base_url"):
        judge_config(tmp_path, serve=SERVE, base_url="http://127.0.0.1/v1")
    for key in ("port", "trust_remote_code", "--port", "served-model-name"):
        with pytest.raises(UserError, match="set by the stage"):
            judge_config(tmp_path, serve={"revision": COMMIT, "arguments": {key: 1}})
