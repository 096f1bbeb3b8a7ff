"""`doctor` on copies of the repository: fake nvidia-smi, hub and judge on loopback, keys that must not be shown."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import venv
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest

from pipeline.params.load import load_params
from tests.support.quick_yaml import safe_dump, safe_load

REPOSITORY = Path(__file__).parents[2]
PARTS = ("params.yaml", "dvc.yaml", "dvc.lock", "locks", "pyproject.toml", ".gitignore")
SECRET = "sk-marker-THIS-MUST-NEVER-BE-SEEN"  # pragma: allowlist secret
LOCK = "CPU" if version("torch").endswith("+cpu") else "GPU"  # of the environment that these tests run in
H100 = "NVIDIA H100 80GB HBM3, 9.0, 81559, 580.65.06"
MIXTRAL = {  # the fields of the published config.json that a memory plan reads
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
    "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A repository with one commit and nothing changed."""
    folder = tmp_path_factory.mktemp("clean")
    for name in PARTS:
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / name)
    shutil.copytree(REPOSITORY / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    commit(folder)
    return folder


@pytest.fixture
def copy(clean, tmp_path):
    """A copy of it to be spoiled."""
    return Path(shutil.copytree(clean, tmp_path / "copy"))


@pytest.fixture
def server():
    """A hub and a judge on loopback: `answers` maps a path's end to (status, body); `seen` are (path, token)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            http.seen.append((self.path, self.headers.get("Authorization")))
            status, body = next((a for end, a in http.answers.items() if self.path.endswith(end)), (404, ""))
            if status == "hang":
                http.released.wait(20)
                return
            self.send_response(status)
            if status == 307:
                self.send_header("Location", body)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body.encode())

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.answers, http.seen, http.released = {}, [], threading.Event()
    http.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield http
    http.released.set()
    http.shutdown()


def commit(folder):
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *command]
        subprocess.run(git, cwd=folder, check=True, capture_output=True)


def smi(folder, answer, status=0):
    """A folder with an nvidia-smi that answers so."""
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\nexit {status}\n")
    program.chmod(0o755)
    return folder


def doctor(folder, *arguments, python=sys.executable, first=None, **environment):
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    # This machine's own GPU, if it has one, is no part of any test.
    first = first or smi(folder.parent / "no-gpu", "No devices were found", 6)
    kept["PATH"] = f"{first}{os.pathsep}{kept['PATH']}"
    kept |= {"HF_HOME": str(folder / "no-hf"), "PYTHONDONTWRITEBYTECODE": "1"} | environment
    command = [str(python), "-m", "pipeline", "doctor", *arguments]
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, timeout=120)


def lines(result, name):
    """The (level, text) of every line of a check."""
    return [
        (line[:5].strip(), line[19:])
        for line in result.stdout.splitlines()
        if line[:5].strip() and line[6:18].strip() == name
    ]


def test_toy_on_a_machine_without_gpu_is_fine(clean):
    result = doctor(clean, "--study", "toy")
    assert result.returncode == 0, result.stdout + result.stderr
    assert lines(result, "GPU") == [("ok", "none found, and none is needed")]
    assert lines(result, "git")[0][0] == "ok" and "nothing changed" in lines(result, "git")[0][1]
    assert lines(result, "packages")[0][0] == "ok"
    params = load_params(REPOSITORY / "params.yaml")
    stages = len(params.bases_of("toy")) + 3 * len(params.runs_of("toy")) + 2  # probe and aggregate
    assert re.match(rf"dvc\.lock records \d+ of toy's {stages} stages", lines(result, "DVC")[0][1])
    assert result.stdout.strip().endswith("0 fail.")


def test_before_set_up_a_bare_python_says_how_to_set_up(clean, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    result = doctor(clean, python=tmp_path / "bare" / "bin" / "python")
    assert result.returncode == 0 and not result.stderr
    assert lines(result, "packages") == [("warn", "torch is not installed: the environment is not set up yet")]
    assert lines(result, "study")[0][0] == "warn" and "make setup" in result.stdout


def test_half_of_a_set_up_is_a_warning_and_no_traceback(clean, tmp_path):
    """Some of the packages, as a system's Python may have them."""
    for name in ("yaml", "tqdm"):
        package = Path(importlib.util.find_spec(name).origin).parent
        shutil.copytree(package, tmp_path / "some" / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    venv.create(tmp_path / "bare", with_pip=False)
    bare = tmp_path / "bare" / "bin" / "python"
    result = doctor(clean, "--study", "moe", "--offline", python=bare, PYTHONPATH=str(tmp_path / "some"))
    assert not result.stderr
    ((level, missing),) = lines(result, "study")
    assert level == "warn" and "not looked at: it needs the package" in missing


def test_a_gpu_that_study_moe_cannot_use_fails_nothing_before_set_up(clean, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    old = smi(tmp_path / "bin", "Tesla T4, 7.5, 15360, 580.65.06")
    result = doctor(clean, python=tmp_path / "bare" / "bin" / "python", first=old)
    assert lines(result, "GPU")[0][0] == "warn" and result.returncode == 0


@pytest.mark.skipif(LOCK == "GPU", reason="the environment has the GPU lock")
def test_a_gpu_with_the_cpu_lock_gets_the_toy_study(clean, tmp_path):
    """As `make reproduce` chooses: torch's CPU build would train study moe's models on the CPU."""
    result = doctor(clean, "--offline", first=smi(tmp_path / "bin", H100))
    assert lines(result, "study") == [
        (
            "ok",
            "toy, because this machine has a GPU (NVIDIA H100 80GB HBM3), but the packages are those of the CPU lock "
            "(see `make doctor`)",
        )
    ]


@pytest.mark.parametrize(
    ("answer", "status", "level", "words"),
    [
        (H100, 0, "ok", "NVIDIA H100 80GB HBM3, compute capability 9.0, 79.6 GiB"),
        ("Tesla T4, 7.5, 15360, 580.65.06", 0, "fail", "compute capability 7.5"),
        ("Failed to initialize NVML: Driver/library version mismatch", 18, "fail", "version mismatch"),
        ("garbage", 0, "fail", "nvidia-smi names none"),
    ],
)
def test_gpus_as_nvidia_smi_describes_them(clean, tmp_path, answer, status, level, words):
    result = doctor(clean, "--study", "moe", "--offline", first=smi(tmp_path / "bin", answer, status))
    ((found, text),) = lines(result, "GPU")
    assert found == level and words in text
    assert result.returncode == 1, "the key is missing either way"
    cannot = ("fail", "those of the CPU lock, which cannot do this study")
    assert (lines(result, "packages") == [cannot]) is (LOCK == "CPU")


def test_an_old_driver_fails_with_the_one_to_install(clean, tmp_path):
    old = smi(tmp_path / "bin", "NVIDIA A100, 8.0, 40960, 535.104.05")
    result = doctor(clean, "--study", "moe", "--offline", first=old)
    assert lines(result, "driver") == [("fail", "535.104.05; the lock's CUDA 13 needs 580")]
    assert "install NVIDIA driver 580 or newer" in result.stdout


@pytest.mark.parametrize(("memory", "level"), [(81559, "ok"), (8000, "fail")])
def test_gpu_memory_is_planned_from_the_cached_config(clean, tmp_path, memory, level):
    hub = safe_load((clean / "params.yaml").read_text())["bases"]["hub"]["mixtral"]
    snapshot = tmp_path / "hf/hub" / f"models--{hub['repository'].replace('/', '--')}" / "snapshots" / hub["revision"]
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(MIXTRAL))
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    gpu = smi(tmp_path / "bin", f"GPU, 8.6, {memory}, 580.1")
    result = doctor(clean, "--study", "moe", "--offline", first=gpu, HF_HOME=str(tmp_path / "hf"))
    found, text = next(it for it in lines(result, "GPU memory") if "mixtral" in it[1])
    assert found == level and "GiB" in text
    assert not [it for it in lines(result, "model") if "mixtral" in it[1] and "whole" in it[1]], "a shard is missing"
    (snapshot / "model-1.safetensors").touch()
    result = doctor(clean, "--study", "moe", "--offline", HF_HOME=str(tmp_path / "hf"))
    assert [it for it in lines(result, "model") if "mixtral" in it[1] and "whole" in it[1]]


def test_room_for_models_is_reckoned_by_known_sizes_where_the_hub_says_none(clean, tmp_path):
    result = doctor(clean, "--study", "moe", "--offline", HF_HOME=str(tmp_path / "hf"))
    assert "168.2 GB to fetch" in lines(result, "model disk")[0][1]


def with_judge(folder, url):
    """The study moe judged by an endpoint at `url`."""
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("https://api.together.xyz/v1", f"{url}/v1"))


def test_reachable_models_and_judges_get_their_own_secret_and_no_other(copy, server):
    with_judge(copy, server.url)
    server.answers = {
        "config.json": (307, f"{server.url}/elsewhere"),
        "recursive=true": (200, '[{"path": "model.safetensors", "size": 1000000000}, {"path": "x.bin", "size": 9}]'),
        "/v1/models": (200, "{}"),
    }
    token = "hf_marker_token"
    result = doctor(copy, "--study", "moe", TOGETHER_API_KEY=SECRET, HF_TOKEN=token, HF_ENDPOINT=server.url)
    assert [level for level, _ in lines(result, "model")] == ["ok", "ok", "ok"]
    assert "3.0 GB to fetch" in result.stdout
    assert lines(result, "judge")[0][0] == "ok" and "is set (not shown)" in result.stdout
    sent = {path.split("?")[0].rpartition("/")[2]: key for path, key in server.seen}
    assert sent["models"] == f"Bearer {SECRET}" and sent["config.json"] == f"Bearer {token}"
    assert not any(path == "/elsewhere" for path, _ in server.seen), "a redirect was followed with the token"
    for secret in (SECRET, token):
        assert secret not in result.stdout + result.stderr


def test_gated_models_and_refused_keys_fail_with_the_remedy(copy, server):
    with_judge(copy, server.url)
    server.answers = {"config.json": (401, SECRET), "/v1/models": (401, SECRET)}
    result = doctor(copy, "--study", "moe", TOGETHER_API_KEY=SECRET, HF_ENDPOINT=server.url)
    assert result.returncode == 1
    assert [level for level, text in lines(result, "model") if " is gated and there is no" in text] == ["fail"] * 3
    assert "accept its licence at https://huggingface.co/mistralai/Mixtral-8x7B-Instruct-v0.1" in result.stdout
    assert lines(result, "judge") == [
        ("fail", f"deepseek_v3: TOGETHER_API_KEY is set (not shown), {server.url[7:]} refuses it (HTTP 401)")
    ]
    assert SECRET not in result.stdout + result.stderr


@pytest.mark.parametrize("key", ["", f"{SECRET}\nX-Other: 1", f"{SECRET} ", f"k{SECRET}\u2014"])
def test_keys_that_are_missing_or_cannot_be_keys(copy, server, key):
    with_judge(copy, server.url)
    server.answers = {"/v1/models": (200, "{}")}
    result = doctor(copy, "--study", "moe", TOGETHER_API_KEY=key, HF_ENDPOINT=server.url)
    expected = "ok" if key.strip() == SECRET else "fail"
    assert [level for level, _ in lines(result, "judge")] == [expected]
    assert SECRET not in result.stdout + result.stderr and "Traceback" not in result.stderr


def test_no_network_and_servers_that_hang_are_warnings(copy, server):
    with_judge(copy, server.url)
    server.answers = {"config.json": ("hang", ""), "recursive=true": ("hang", ""), "/v1/models": ("hang", "")}
    result = doctor(copy, "--study", "moe", TOGETHER_API_KEY=SECRET, HF_ENDPOINT=server.url)
    assert {level for level, _ in lines(result, "model") + lines(result, "judge")} == {"warn"}
    result = doctor(copy, "--study", "moe", TOGETHER_API_KEY=SECRET, HF_ENDPOINT="http://127.0.0.1:9")
    assert {level for level, _ in lines(result, "model")} == {"warn"}


def test_a_judge_of_ones_own_in_the_toy_study_is_asked_and_the_rules_are_not(copy, server):
    params = safe_load((copy / "params.yaml").read_text())
    judges = params["studies"]["toy"]["judges"]
    judges["mine"] = {"model": "m", "base_url": f"{server.url}/v1", "templates": judges["toy_rule"]["templates"]}
    (copy / "params.yaml").write_text(safe_dump(params, sort_keys=False))
    server.answers = {"/v1/models": (200, "{}")}
    assert lines(doctor(copy, "--study", "toy"), "judge") == [("ok", f"mine: needs no key, {server.url[7:]} answers")]
    server.answers = {"/v1/models": (401, "")}
    result = doctor(copy, "--study", "toy")
    assert result.returncode == 1 and "name it in api_key_env" in result.stdout


def test_data_is_verified_by_its_bytes(copy):
    folder = copy / "data" / "eval"
    folder.mkdir(parents=True)
    (folder / "core_misalignment.csv").write_text("id,question,category\n1,hi,x\n")
    ((level, text),) = lines(doctor(copy, "--study", "moe", "--offline"), "data")
    assert level == "warn" and "10 of 10 cannot be read" in text and "core_misalignment" in text


def spoil_lock(folder):
    (folder / "dvc.lock").write_text("<<<<<<< HEAD\nstages: {a: [\n")


def spoil_git(folder):
    shutil.rmtree(folder / ".git")


def spoil_commit(folder):
    shutil.rmtree(folder / ".git")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)


def spoil_packages(folder):
    lock = folder / "locks" / f"{LOCK.lower()}.txt"
    lock.write_text(lock.read_text().replace("transformers==5.19.0", "transformers==4.0.0"))


@pytest.mark.parametrize(
    ("spoil", "name", "words"),
    [
        (spoil_lock, "DVC", "dvc.lock is damaged"),
        (spoil_git, "git", "is no git repository"),
        (spoil_commit, "git", "there is no commit yet"),
        (spoil_packages, "packages", "transformers 5.19.0 (locked 4.0.0)"),
    ],
)
def test_a_spoilt_repository_fails_with_a_remedy(copy, spoil, name, words):
    spoil(copy)
    result = doctor(copy, "--study", "toy", GIT_CEILING_DIRECTORIES=str(copy.parent))
    ((level, text),) = lines(result, name)
    assert level == "fail" and words in text and result.returncode == 1
    assert "->" in result.stdout.partition(words)[2].splitlines()[1]


def test_a_changed_file_is_a_warning(copy):
    (copy / "dvc.yaml").write_text((copy / "dvc.yaml").read_text() + "\n")
    result = doctor(copy, "--study", "toy")
    assert lines(result, "git")[0][0] == "warn" and result.returncode == 0


def test_an_unknown_study_is_one_sentence(clean):
    result = doctor(clean, "--study", "mo")
    assert result.returncode == 2 and "no study 'mo'" in result.stderr and "Traceback" not in result.stderr
