"""SQLite that fails: one clear sentence, and what was paid for is kept."""

import contextlib
import sqlite3

import pytest

from pipeline.api import database, held
from pipeline.api.database import Database
from pipeline.api.replies import ReplyCache
from pipeline.common.errors import UserError
from pipeline.judging.run import judge_answers
from tests.support.judge_server import Script, judge_config, judge_server, make_answers

ANSWERS = make_answers(300)


def judged(tmp_path, url, **changes):
    return judge_answers(ANSWERS, "scripted", judge_config(tmp_path, base_url=url, **changes), tmp_path / "cache.db")


@contextlib.contextmanager
def opened_with(monkeypatch, pragma: str):
    """Every cache that is opened here runs a pragma, which makes SQLite itself fail later."""
    prepare = Database._prepare

    def prepare_then(self):
        prepare(self)
        self.connection.execute(pragma)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "_prepare", prepare_then)
        yield


@pytest.mark.parametrize("budget", [None, 1000.0])
@pytest.mark.parametrize(
    ("pragma", "said"),
    [
        ("PRAGMA max_page_count = 20", "cannot grow because the disk is full; free some space, then run again"),
        ("PRAGMA query_only = 1", "read-only; make both writable, then run again"),
    ],
)
def test_a_disk_that_is_full_or_read_only_stops_the_run_and_loses_nothing(tmp_path, monkeypatch, pragma, said, budget):
    monkeypatch.setattr(held, "_WAIT_S", 0.0)
    script = Script(prompt_tokens=3)
    with judge_server(script) as url:
        config = {"budget_usd": budget, "usd_per_million_input_tokens": 1.0, "concurrency": 8}
        with opened_with(monkeypatch, pragma), pytest.raises(UserError, match=said) as refusal:
            judged(tmp_path, url, **config)
        assert "cache.db" in str(refusal.value) and "\n" not in str(refusal.value)
        answered = script.answered.total()
        with sqlite3.connect(tmp_path / "cache.db") as db:
            (kept,) = db.execute("SELECT COUNT(*) FROM replies").fetchone()
        assert answered - kept <= 8 and (answered > 8) == (kept > 0)
        verdicts, summary = judged(tmp_path, url, **config)
    assert "error" not in {verdict.status for verdict in verdicts}
    assert summary.cache_hits == kept
    assert script.answered.total() - len(script.answered) <= 8


def test_a_cache_that_another_program_holds_is_waited_for_and_then_named(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "_LOCK_WAIT_S", 0.2)
    script = Script()
    with judge_server(script) as url:
        with ReplyCache(tmp_path / "cache.db"):
            pass
        other = sqlite3.connect(tmp_path / "cache.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match="has been locked by another program for too long; stop that program"):
            judged(tmp_path, url)
        other.close()
        verdicts, _ = judged(tmp_path, url)
    assert "error" not in {verdict.status for verdict in verdicts}


def damaged(tmp_path) -> None:
    """A cache of 300 answers, its pages but the first overwritten."""
    with judge_server(Script()) as url:
        judged(tmp_path, url)
    path = tmp_path / "cache.db"
    content = path.read_bytes()
    assert len(content) > 20 * 4096
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))


def test_a_damaged_cache_is_left_as_it_is_and_named(tmp_path):
    damaged(tmp_path)
    before = (tmp_path / "cache.db").read_bytes()
    with pytest.raises(UserError, match=r"cache\.db is damaged; restore it from a copy"):
        judged(tmp_path, "http://127.0.0.1:9/v1")
    assert (tmp_path / "cache.db").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cache\.db cannot be opened: "):
        ReplyCache(tmp_path / "file" / "cache.db")


def test_a_call_that_is_wrong_is_no_users_fault(tmp_path):
    with ReplyCache(tmp_path / "cache.db") as cache, pytest.raises(sqlite3.Error):
        cache.get([object()])
