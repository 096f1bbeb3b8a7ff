"""Fine-tuning behind an API: one job and no more, whatever breaks on the way, and no cent over the budget."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.api import jobs as jobs_module
from pipeline.api.config import ADAPTER, tuned_model
from pipeline.common.errors import UserError
from pipeline.training.api import estimate_usd, tune
from tests.support.tuning_server import CHATS, Script, api_base, tuning_server

CLIENT = """
import sys
from pathlib import Path
from tests.support.tuning_server import api_base
from pipeline.api import jobs, limits
from pipeline.training.api import tune
from tests.support.tuning_server import CHATS

jobs._FIRST_POLL_S = limits.FIRST_BACKOFF_S = 0.05
jobs._LONGEST_POLL_S, jobs._APPEARS_WITHIN_S = 0.1, 0.3
folder = Path(sys.argv[2])
tune("gpt_4o", api_base(sys.argv[1]), None, CHATS, epochs=4, batch=4, seed=7, folder=folder / "out",
     cache=folder / "cache", what="run seed-7")
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("TUNING_KEY", Script().key)
    for name, value in {"_FIRST_POLL_S": 0.01, "_APPEARS_WITHIN_S": 0.15, "_LOOKS": 4}.items():
        monkeypatch.setattr(jobs_module, name, value)
    monkeypatch.setattr("pipeline.api.limits.FIRST_BACKOFF_S", 0.01)


def run(url, folder, **changes):
    base = api_base(url, **{name: changes.pop(name) for name in list(changes) if hasattr(api_base(None), name)})
    arguments = {"epochs": 4, "batch": 4, "seed": 7, "folder": folder / "out", "cache": folder / "cache"}
    chats = changes.pop("chats", CHATS)
    return tune("gpt_4o", base, changes.pop("start", None), chats, **arguments | changes, what="run seed-7")


def ours(script):
    return [job for job in script.jobs.values() if not job["training_file"].startswith("file-stranger")]


def test_a_job_is_created_waited_for_and_recorded(tmp_path, capsys):
    script = Script()
    with tuning_server(script) as url:
        record = run(url, tmp_path)
    (job,) = ours(script)
    assert job["model"] == "gpt-4o-2024-08-06" and job["seed"] == 7
    assert job["method"]["supervised"]["hyperparameters"] == {
        "n_epochs": 4, "batch_size": 4, "learning_rate_multiplier": 2.0,
    }  # fmt: skip
    lines = script.files[job["training_file"]].decode().splitlines()
    assert [json.loads(line)["messages"][0]["content"] for line in lines] == [chat[0].content for chat in CHATS]
    assert record["model"] == f"ft:gpt-4o-2024-08-06:org::{job['id']}" == tuned_model(tmp_path / "out")
    assert record == json.loads((tmp_path / "out" / ADAPTER).read_text())
    assert (record["job"], record["base"], record["rows"], record["trained_tokens"]) == (
        job["id"], "gpt-4o-2024-08-06", 4, 1200,
    )  # fmt: skip
    assert record["usd"] == pytest.approx(1200 * 25 / 1e6)
    said = capsys.readouterr().out
    assert "is queued" in said and "is succeeded" in said
    written = said + "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert script.key not in written


def test_what_is_done_is_not_asked_for_again(tmp_path):
    script = Script()
    with tuning_server(script) as url:
        first = run(url, tmp_path)
        calls = script.calls.copy()
        (tmp_path / "out" / ADAPTER).unlink()  # as DVC does before a stage runs again
        assert run(url, tmp_path) == first and script.calls == calls
        run(url, tmp_path, seed=8)
        run(url, tmp_path, epochs=1)
        run(url, tmp_path, start=first["model"])
        run(url, tmp_path, chats=CHATS[:3])
    assert [job["model"] for job in ours(script)].count("gpt-4o-2024-08-06") == 4
    assert len({job["training_file"] for job in ours(script)}) == len(ours(script)) == 5


FAULTS = [(called, fault) for called in ("upload", "retrieve") for fault in ("500", "429", "reset", "lost", "nonsense")]
FAULTS += [("create", "429"), ("create", "lost"), ("create", "nonsense")]


@pytest.mark.parametrize(("called", "fault"), FAULTS)
def test_no_fault_makes_a_second_job(tmp_path, called, fault):
    script = Script(faults={called: [fault, fault]})
    with tuning_server(script) as url:
        record = run(url, tmp_path)
    assert len(ours(script)) == 1 and record["job"] == ours(script)[0]["id"]
    assert script.faults[called] == [] or (called, fault) in {("create", "lost"), ("create", "nonsense")}


@pytest.mark.parametrize("fault", ["500", "reset"])
def test_where_a_job_may_have_been_made_none_is_ordered_without_the_users_word(tmp_path, fault):
    script = Script(faults={"create": [fault]})
    with tuning_server(script) as url:
        for _ in range(2):
            with pytest.raises(
                UserError, match=r"the reply got lost; .* has listed none .* if not, delete (\S+)"
            ) as caught:
                run(url, tmp_path)
        assert script.calls["create"] == 1 and not ours(script)
        (state,) = (tmp_path / "cache" / "fine_tuning").glob("*.json")
        assert str(state) in str(caught.value)
        state.unlink()
        assert run(url, tmp_path)["job"] == ours(script)[0]["id"]


def test_a_job_whose_reply_got_lost_is_not_ordered_twice_however_late_it_is_listed(tmp_path):
    script = Script(faults={"create": ["lost"]}, hidden=4)
    with tuning_server(script) as url:
        with pytest.raises(UserError, match="if it is there, run again"):
            run(url, tmp_path)
        assert len(ours(script)) == 1
        record = run(url, tmp_path)
    assert len(ours(script)) == 1 and record["job"] == ours(script)[0]["id"] and script.calls["create"] == 1


def test_what_a_kill_left_of_a_write_is_neither_counted_nor_in_the_way(tmp_path):
    estimate = estimate_usd(api_base(None), CHATS, 4)
    script = Script()
    with tuning_server(script) as url:
        run(url, tmp_path)
        (state,) = (tmp_path / "cache" / "fine_tuning").glob("*.json")
        whole, half = (state.with_name(f".{state.name}.{name}.json") for name in ("abc", "xyz"))
        whole.write_bytes(state.read_bytes())
        half.write_bytes(state.read_bytes()[:20])
        run(url, tmp_path, training_budget_usd=0.03 + 1.1 * estimate, seed=8)
        assert whole.exists() and half.exists()  # another order's: its own writer sweeps them
        run(url, tmp_path)
        assert not whole.exists() and not half.exists()


def test_a_job_that_is_listed_late_is_found(tmp_path):
    script = Script(faults={"create": ["lost"]}, hidden=2)
    with tuning_server(script) as url:
        run(url, tmp_path)
    assert len(ours(script)) == 1 and script.calls["create"] == 1 and script.hidden == 0


def kill_when(process, condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "the client ended before it could be killed"
        assert time.monotonic() < deadline, "the client never got that far"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def client(url, folder):
    tests = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, url, str(folder)],
        env=os.environ | {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"},
        stdout=subprocess.DEVNULL,
    )


def test_killed_in_the_call_that_creates_and_in_the_wait_there_is_one_job(tmp_path):
    script = Script(held_s=30.0, statuses=("running",) * 20)
    with tuning_server(script) as url:
        kill_when(client(url, tmp_path), lambda: ours(script))  # the job exists, the client was never told
        script.held_s = 0.0
        kill_when(client(url, tmp_path), lambda: script.polls[ours(script)[0]["id"]] >= 3)
        assert not (tmp_path / "out").exists()
        assert client(url, tmp_path).wait(timeout=60) == 0
    assert len(ours(script)) == 1 and script.calls["create"] == 1 and script.calls["upload"] == 1
    assert tuned_model(tmp_path / "out").endswith(ours(script)[0]["id"])


def test_a_budget_stops_before_anything_leaves_this_machine(tmp_path):
    script = Script()
    estimate = estimate_usd(api_base(None), CHATS, 4)
    size = sum(len(message.content.encode()) for chat in CHATS for message in chat)
    assert estimate == pytest.approx(size / 3 * 4 * 25 / 1e6)
    with tuning_server(script) as url:
        with pytest.raises(UserError, match=r"no job was created: raise training_budget_usd of bases\.api\.gpt_4o"):
            run(url, tmp_path, training_budget_usd=0.9 * estimate)
        assert not script.calls
        run(url, tmp_path, training_budget_usd=1.1 * estimate)
        # The first job cost 0.03 USD, which is on the account: there is no room for another.
        with pytest.raises(UserError, match=r"has spent 0\.03 of its"):
            run(url, tmp_path, training_budget_usd=0.03 + 0.9 * estimate, seed=8)
        run(url, tmp_path, training_budget_usd=0.03 + 1.1 * estimate, seed=8)
    assert len(ours(script)) == 2


@pytest.mark.parametrize("ending", ["failed", "cancelled"])
def test_a_failed_job_says_why_and_is_not_tried_again(tmp_path, ending):
    script = Script(ending=ending, message="the file has\nharmful content", tokens=None)
    with tuning_server(script) as url:
        for _ in range(2):
            with pytest.raises(UserError) as caught:
                run(url, tmp_path)
            said = str(caught.value)
            assert f"of gpt-4o-2024-08-06 {ending}: the file has harmful content; to have" in said and "\n" not in said
        assert len(ours(script)) == 1 and script.calls["create"] == 1
        (state,) = (tmp_path / "cache" / "fine_tuning").glob("*.json")
        assert str(state) in said
        state.unlink()
        script.ending = "succeeded"
        assert run(url, tmp_path)["job"] == ours(script)[1]["id"]


def test_a_refusal_is_one_sentence_without_the_key_and_costs_nothing(tmp_path, monkeypatch):
    script = Script(faults={"create": ["refuse"]})
    with tuning_server(script) as url:
        with pytest.raises(UserError) as caught:
            run(url, tmp_path)
        assert "HTTP 400: this training file is not allowed, [key]" in str(caught.value)
        assert script.key not in str(caught.value) and not ours(script)
        (state,) = (tmp_path / "cache" / "fine_tuning").glob("*.json")
        assert json.loads(state.read_text())["phase"] == "uploaded"
        assert run(url, tmp_path)["job"] == ours(script)[0]["id"]
        monkeypatch.setenv("TUNING_KEY", "sk-wrong-0123456789")
        with pytest.raises(UserError, match=r"model .* does not accept the key in TUNING_KEY"):
            run(url, tmp_path, seed=9)
    monkeypatch.delenv("TUNING_KEY")
    with pytest.raises(UserError, match="model gpt-4o-2024-08-06: environment variable TUNING_KEY is not set"):
        run("http://127.0.0.1:1/v1", tmp_path, seed=9)


def test_a_server_that_is_not_there_is_said_to_be(tmp_path):
    with tuning_server(Script()) as url:
        pass
    with pytest.raises(UserError, match=r"model .* cannot be reached; what was done is kept, run again"):
        run(url, tmp_path)


def test_a_damaged_state_is_named(tmp_path):
    script = Script()
    with tuning_server(script) as url:
        run(url, tmp_path)
        (state,) = (tmp_path / "cache" / "fine_tuning").glob("*.json")
        state.write_text(state.read_text().replace('"epochs": 4', '"epochs": 5'))
        with pytest.raises(UserError, match="describes another job"):
            run(url, tmp_path)
        state.write_text("{")
        with pytest.raises(UserError, match="not valid JSON"):
            run(url, tmp_path)
