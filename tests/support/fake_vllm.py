"""What stands for `vllm` on PATH: serves the OpenAI API over real HTTP, as slowly, crashes, and clings to life as told.

    vllm serve MODEL --host H --port P --served-model-name NAME TOKEN ...

EMOE_FAKE_VLLM holds words: `slow` (listens late, then says 503 for a while), `crash` (ends at the start), `dies` (ends
after three answers), `clings` (ignores SIGTERM, and so does a process that it starts). What it was told, and the
processes, go to the file named by EMOE_FAKE_VLLM_LOG, a JSON line each start.
"""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"


def put_on_path(folder: Path, monkeypatch, behaviour: str) -> Path:
    """Have `vllm` be this; returns the file that says what it was told."""
    program = folder / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nexec(open({__file__!r}).read())\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("EMOE_FAKE_VLLM", behaviour)
    monkeypatch.setenv("EMOE_FAKE_VLLM_LOG", str(folder / "starts.jsonl"))
    return folder / "starts.jsonl"


def main() -> None:
    words, begun, answers = os.environ["EMOE_FAKE_VLLM"].split(), time.monotonic(), []
    told = sys.argv[1:]
    names = told[told.index("--served-model-name") + 1 :][:2]
    processes = [os.getpid()]
    print("INFO vllm starts", flush=True)
    if "clings" in words:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        processes.append(subprocess.Popen([sys.executable, "-c", SLEEPER]).pid)
    with Path(os.environ["EMOE_FAKE_VLLM_LOG"]).open("a") as log:
        log.write(json.dumps({"told": told, "processes": processes}) + "\n")
    if "crash" in words:
        print("ValueError: No available memory for the cache blocks.\nINFO shutting down", file=sys.stderr)
        sys.exit(1)
    if "slow" in words:
        time.sleep(1)

    class Handler(BaseHTTPRequestHandler):
        def send(self, status: int, content: object) -> None:
            body = json.dumps(content).encode() if content is not None else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if "slow" in words and time.monotonic() - begun < 2:
                return self.send(503, None)
            pages = {"/health": None, "/version": {"version": "0.0-fake"}}
            pages["/v1/models"] = {"object": "list", "data": [{"id": name} for name in names]}
            return self.send(200, pages[self.path]) if self.path in pages else self.send(404, {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answers.append(body)
            if "dies" in words and len(answers) > 3:
                print("RuntimeError: Engine core died", flush=True)
                os._exit(7)
            if body["model"] not in names:
                return self.send(404, {"error": {"message": f"the model {body['model']} does not exist"}})
            message = {"role": "assistant", "content": "85"}
            usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return self.send(200, {"model": body["model"], "choices": [choice], "usage": usage})

        def log_message(self, *_: object) -> None:
            pass

    port = int(told[told.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()  # OSError: [Errno 98] Address already in use


if __name__ == "__main__":
    main()
