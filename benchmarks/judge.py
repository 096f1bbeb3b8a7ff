"""How near the endpoint client comes to what an endpoint with 50 ms of latency allows.

    python -m benchmarks.judge [--requests 12000] [--latency-ms 50]

Measured against one local server (benchmarks/latency_server.py) in one run: `judge_answers` (cache,
accounting and all) at concurrency 1, 16, 64 and 256, and at 64 with a budget to keep; the sequential loop that
the authors' notebook used; a plain `asyncio.gather` over openai.AsyncOpenAI, as it comes and over its aiohttp
transport; that client at its fastest (aiohttp transport, replies left untyped); and bare aiohttp, which shows
what one core can do without any client on top. The limit is concurrency / latency, or where that is more than
one core can send, the client's own rate against a server without latency. Client and server each have a core
where there are two.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import openai

from pipeline.common.files import write_json
from pipeline.common.rows import Answer
from pipeline.judging.aspects import ASPECTS
from pipeline.judging.config import JudgeConfig
from pipeline.judging.protocols import load_protocol
from pipeline.judging.run import judge_answers
from tests.support.judge_server import judge_config, make_answers

RESULT = Path(__file__).parent / "results" / "judge.json"
CONCURRENCIES = (1, 16, 64, 256)
PEERS = ("client_with_budget", "bare_aiohttp", "gather", "gather_aiohttp", "untyped_aiohttp", "sequential")
REPEATS = 3  # the best is kept: other work on the machine only ever slows it down
Measure = Callable[[int, JudgeConfig], float]
SECONDS = 3.0  # about how long one measurement takes
# Of `judge_answers`, longer: making the client, its first request alone and reading the verdicts back, which a peer
# does not do or is not timed at, take a few tenths of a second whatever the number of requests.
CLIENT_SECONDS = 10.0


@contextlib.contextmanager
def server(latency_s: float) -> Iterator[str]:
    """The server in a process of its own, on the last core."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.latency_server", str(latency_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def answers_of(requests: int) -> list[Answer]:
    """Answers of a usual length, two requests each."""
    return [replace(answer, answer=answer.answer + " word" * 200) for answer in make_answers(max(1, requests // 2))]


def bodies(requests: int, config: JudgeConfig) -> list[dict[str, Any]]:
    protocol = load_protocol(config)
    answers = answers_of(requests)
    return [protocol.request(answer, aspect).body for answer in answers for aspect in ASPECTS]


def ours(requests: int, config: JudgeConfig) -> float:
    """Requests/s of `judge_answers` into a fresh cache."""
    with tempfile.TemporaryDirectory() as folder:
        _, summary = judge_answers(answers_of(requests), "benchmark", config, Path(folder) / "cache.db")
    assert not summary.errors and summary.calls == summary.requests
    return summary.calls / summary.seconds


def sequential(requests: int, config: JudgeConfig) -> float:
    """Requests/s of one call after the other, as the notebook's loop made them."""
    with openai.OpenAI(base_url=config.base_url, api_key="none") as client:
        started = time.perf_counter()
        for body in bodies(requests, config):
            assert client.chat.completions.create(**body).choices[0].message.content
        return requests / (time.perf_counter() - started)


Call = Callable[[openai.AsyncOpenAI, dict[str, Any]], Awaitable[Any]]


async def typed(client: openai.AsyncOpenAI, body: dict[str, Any]) -> Any:
    return (await client.chat.completions.create(**body)).choices[0].message.content


async def untyped(client: openai.AsyncOpenAI, body: dict[str, Any]) -> Any:
    return (await client.post("/chat/completions", body=body, cast_to=httpx2.Response)).json()


def gathered(http_client: Callable[[], httpx2.AsyncClient], call: Call, requests: int, config: JudgeConfig) -> float:
    """Requests/s of `asyncio.gather` over AsyncOpenAI, bounded by a semaphore, at its default settings."""

    async def run() -> float:
        places = asyncio.Semaphore(config.concurrency)
        async with openai.AsyncOpenAI(base_url=config.base_url, api_key="none", http_client=http_client()) as client:

            async def ask(body: dict[str, Any]) -> None:
                async with places:
                    assert await call(client, body)

            started = time.perf_counter()
            await asyncio.gather(*(ask(body) for body in bodies(requests, config)))
            return requests / (time.perf_counter() - started)

    return asyncio.run(run())


gather = partial(gathered, openai.DefaultAsyncHttpxClient, typed)
gather_aiohttp = partial(gathered, openai.DefaultAioHttpClient, typed)
untyped_aiohttp = partial(gathered, openai.DefaultAioHttpClient, untyped)


def bare(requests: int, config: JudgeConfig) -> float:
    """Requests/s of aiohttp alone: what one core can send and receive."""

    async def run() -> float:
        todo = iter(bodies(requests, config))
        connector = aiohttp.TCPConnector(limit=config.concurrency)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def work() -> None:
                for body in todo:
                    async with session.post(f"{config.base_url}/chat/completions", json=body) as response:
                        json.loads(await response.read())

            started = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(config.concurrency)))
            return requests / (time.perf_counter() - started)

    return asyncio.run(run())


def best(measure: Measure, requests: int, config: JudgeConfig) -> tuple[float, float]:
    """The highest requests/s and the lowest CPU ms a request of several tries."""
    rates, cpu_ms = [], []
    for _ in range(REPEATS):
        started = time.process_time()
        rates.append(measure(requests, config))
        cpu_ms.append((time.process_time() - started) / requests * 1000)
    return max(rates), min(cpu_ms)


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return {
        "cpu": model[0].split(":")[1].strip() if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_before": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in ("openai", "aiohttp", "httpx2")},
        "commit": commit.stdout.strip() or None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=12000, help="at most this many a measurement")
    parser.add_argument("--latency-ms", type=float, default=50.0, help="the server's latency")
    arguments = parser.parse_args()
    latency_s = arguments.latency_ms / 1000
    described = machine()
    cores = sorted(os.sched_getaffinity(0))

    def count(per_second: float, seconds: float = SECONDS) -> int:
        return 2 * int(min(arguments.requests, max(20, per_second * seconds)) / 2)

    with contextlib.ExitStack() as stack:
        config = judge_config(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        instant, slow = stack.enter_context(server(0.0)), stack.enter_context(server(latency_s))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))  # progress bars
        os.sched_setaffinity(0, {cores[0]})
        at_once = config.model_copy(update={"base_url": instant, "concurrency": 64})
        slower = count(400)  # the peers' own measurements need fewer requests to last as long
        measures: tuple[tuple[str, Measure, int], ...] = (
            ("client", ours, count(1500, CLIENT_SECONDS)),
            ("gather", gather, slower),
            ("gather_aiohttp", gather_aiohttp, slower),
            ("untyped_aiohttp", untyped_aiohttp, slower),
            ("bare_aiohttp", bare, count(3000)),
        )
        one_core = {
            name: dict(zip(("requests_per_s", "cpu_ms"), best(measure, requests, at_once), strict=True))
            for name, measure, requests in measures
        }
        top = one_core["client"]["requests_per_s"]
        rows = []
        for concurrency in CONCURRENCIES:
            judge = config.model_copy(update={"base_url": slow, "concurrency": concurrency})
            limit = concurrency / latency_s
            requests = count(limit, CLIENT_SECONDS)
            row: dict[str, Any] = {"concurrency": concurrency, "limit": limit, "requests": requests}
            row["client"], row["cpu_ms"] = best(ours, requests, judge)
            row["bare_aiohttp"], _ = best(bare, count(limit), judge)
            row["gather"], _ = best(gather, min(slower, count(limit)), judge)
            if concurrency == 1:
                row["sequential"], _ = best(sequential, count(limit), judge)
            if concurrency == 64:
                row["gather_aiohttp"], _ = best(gather_aiohttp, slower, judge)
                row["untyped_aiohttp"], _ = best(untyped_aiohttp, slower, judge)
                priced = judge.model_copy(update={"usd_per_million_input_tokens": 1.0, "budget_usd": 1000.0})
                row["client_with_budget"], row["cpu_ms_with_budget"] = best(ours, requests, priced)
            row["share_of_latency_limit"] = row["client"] / limit
            row["share_of_limit"] = row["client"] / min(limit, max(top, row["client"]))
            rows.append(row)
    described["load_average_after"] = os.getloadavg()[0]
    write_json(
        RESULT,
        {
            "latency_ms": arguments.latency_ms,
            "one_core_at_no_latency": one_core,
            "requests_per_s": rows,
            "machine": described,
        },
    )
    for row in rows:
        peers = "".join(f", {name} {row[name]:.0f}/s" for name in PEERS if name in row)
        print(
            f"concurrency {row['concurrency']:>3}: {row['client']:.0f}/s = "
            f"{row['share_of_latency_limit']:.0%} of concurrency/latency, "
            f"{row['share_of_limit']:.0%} of what one core allows of it{peers}"
        )
    at_64 = next(row for row in rows if row["concurrency"] == 64)
    print(
        f"judge: {at_64['client']:.0f} requests/s at concurrency 64 "
        f"({at_64['share_of_latency_limit']:.0%} of the latency limit, bare aiohttp {at_64['bare_aiohttp']:.0f}, "
        f"AsyncOpenAI at its fastest {at_64['untyped_aiohttp']:.0f}, gather {at_64['gather']:.0f}, "
        f"sequential {rows[0]['sequential']:.0f}); one core tops out at "
        + ", ".join(
            f"{figures['requests_per_s']:.0f}/s ({name}, {figures['cpu_ms']:.2f} ms of CPU each)"
            for name, figures in one_core.items()
        )
        + f"; load average {described['load_average_before']:.1f} to {described['load_average_after']:.1f}"
    )


if __name__ == "__main__":
    main()
