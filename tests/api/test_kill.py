"""5,000 verdicts through a faulty server, the client killed three times: none lost, none paid twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.common.rows import read_verdicts
from tests.support.judge_server import FAULTS, Script, judge_server

VERDICTS = 5000
CONCURRENCY = 32
# Waiting past this is a hang, and fails.
LIMIT_S = 240
# Half of the answers are given twice, as samples are: 5,000 distinct prompts.
CLIENT = """
import sys
from pathlib import Path
from tests.support.judge_server import judge_config, make_answers
from pipeline.api import limits
from pipeline.judging.run import judge_answers
from pipeline.common.rows import write_rows

url, folder, cache = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
verdicts, concurrency = int(sys.argv[4]), int(sys.argv[5])
limits.FIRST_BACKOFF_S = 0.02
config = judge_config(
    folder, base_url=url, concurrency=concurrency, timeout_s=float(sys.argv[6]), max_retries=20, max_unparsed_retries=8
)
rows, summary = judge_answers(make_answers(verdicts, verdicts // 2), "scripted", config, cache)
write_rows(folder / "verdicts.jsonl", rows)
print(summary)
"""


def start_client(
    url: str, folder: Path, cache: Path | None = None, verdicts: int = VERDICTS, timeout_s: float = 60.0
) -> subprocess.Popen:
    """The client in a process of its own, which can be killed.

    A request that a busy machine lets run into its timeout is paid for and asked again: it is short where replies are
    slow by intent.
    """
    cache = cache or folder / "cache.db"
    folder.mkdir(exist_ok=True)
    tests = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, url, str(folder), str(cache), str(verdicts), str(CONCURRENCY), str(timeout_s)],
        env=os.environ | {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"},
        stderr=subprocess.DEVNULL,
    )


def kill_at(process: subprocess.Popen, script: Script, answered: int) -> None:
    """SIGKILL the client once the server has given so many answers."""
    deadline = time.monotonic() + LIMIT_S
    while script.answered.total() < answered:
        assert process.poll() is None, "the client ended before it could be killed"
        assert time.monotonic() < deadline, "the client has stopped asking"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_three_kills_and_a_fifth_of_failures_change_no_byte(tmp_path):
    faulty = Script(fault_share=0.2, slow_s=60.0)
    with judge_server(faulty) as url:
        for answered in (700, 2100, 4000):
            kill_at(start_client(url, tmp_path / "faulty", timeout_s=4.0), faulty, answered)
            assert not (tmp_path / "faulty" / "verdicts.jsonl").exists()
        assert start_client(url, tmp_path / "faulty", timeout_s=4.0).wait(timeout=LIMIT_S) == 0
    calm = Script()
    with judge_server(calm) as url:
        assert start_client(url, tmp_path / "calm").wait(timeout=LIMIT_S) == 0

    verdicts = read_verdicts(tmp_path / "faulty" / "verdicts.jsonl")  # refuses duplicate keys
    assert len(verdicts) == VERDICTS
    assert {verdict.status for verdict in verdicts} == {"scored", "refusal", "code"}
    output, undisturbed = ((tmp_path / name / "verdicts.jsonl").read_bytes() for name in ("faulty", "calm"))
    assert output == undisturbed

    assert all(faulty.seen[fault] for fault in FAULTS)
    failed = sum(faulty.seen[fault] for fault in FAULTS)
    assert 0.15 < failed / faulty.seen.total() < 0.25
    assert set(calm.answered.values()) == {1}
    assert faulty.answered.keys() == calm.answered.keys()
    twice = faulty.answered.total() - len(faulty.answered)
    assert twice <= 3 * CONCURRENCY


def test_two_processes_share_one_cache(tmp_path):
    script = Script(latency_s=0.01)
    cache = tmp_path / "cache.db"
    with judge_server(script) as url:
        clients = [start_client(url, tmp_path / name, cache, verdicts=600) for name in ("one", "two")]
        assert [client.wait(timeout=LIMIT_S) for client in clients] == [0, 0]
        one, two = ((tmp_path / name / "verdicts.jsonl").read_bytes() for name in ("one", "two"))
        assert one == two
        answered = script.answered.total()
        assert len(script.answered) == 600 == answered  # whoever asks first, the other one takes the reply
        # Whatever either of them paid for is there for a third.
        assert start_client(url, tmp_path / "three", cache, verdicts=600).wait(timeout=LIMIT_S) == 0
        assert script.answered.total() == answered
