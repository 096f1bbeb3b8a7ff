"""add-base against a hub on loopback: what it looks up, what it writes, and what it refuses."""

import json
import shutil
import subprocess
import sys

import pytest

from pipeline.params.load import load_params
from tests.support.checkout import REPOSITORY, environment
from tests.support.hub_server import SHA, TOKEN, serve_hub
from tests.support.tiny_models import CONFIGS


@pytest.fixture
def ask(tmp_path):
    """A function that runs add-base in a checkout; the hub that it asks."""
    shutil.copy2(REPOSITORY / "params.yaml", tmp_path)
    (tmp_path / "pipeline").symlink_to(REPOSITORY / "pipeline")
    config = {"config.json": CONFIGS["mixtral"]().to_json_string().encode()}
    with serve_hub() as hub:
        hub.add("owner/Tiny-MoE.v1", config | {"README.md": b"---\nlicense: mit\n---\n"})
        hub.add("owner/locked", config, gated=True)
        hub.add("owner/other", {"config.json": json.dumps({"model_type": "gpt2"}).encode()})
        code = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
        hub.add("owner/code", {"config.json": json.dumps(code).encode(), "code.py": b"open('PWNED', 'w')"})

        def run(*arguments, token=None):
            names = environment() | hub.environment(tmp_path / "home", token)
            command = [sys.executable, "-m", "pipeline", "add-base", *arguments]
            return subprocess.run(command, cwd=tmp_path, env=names, capture_output=True, text=True, input="y\ny\n")

        yield run, tmp_path


def test_a_hub_model_is_pinned_with_its_experts(ask):
    run, folder = ask
    done = run("owner/Tiny-MoE.v1")
    assert done.returncode == 0, done.stderr
    base = load_params(folder / "params.yaml").hub_base("tiny_moe_v1")
    config = CONFIGS["mixtral"]()
    assert (base.repository, base.revision) == ("owner/Tiny-MoE.v1", SHA)
    assert (base.experts, base.active) == (config.num_local_experts, config.num_experts_per_tok)
    assert (base.family, base.gated) == ("mixtral", False)
    assert "dvc repro pin@tiny_moe_v1" in done.stdout and "gated" not in done.stdout.splitlines()[-3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["owner/none"], ["owner/none at main cannot be looked up", "check the name"]),
        (["owner/locked"], ["owner/locked at main cannot be looked up", "HF_TOKEN"]),
        (["owner/other"], ["owner/other", "'gpt2' is not supported; known are", "mixtral", "two things"]),
        (["owner/code"], ["owner/code"]),
        (["pipeline"], ["pipeline holds no config.json", "no checkpoint"]),
        (["owner/Tiny-MoE.v1", "--name", "../x"], ["the name '../x' will not do"]),
        (["owner/Tiny-MoE.v1", "--name", "mixtral"], ["bases.hub.mixtral is there"]),
    ],
)
def test_what_cannot_be_a_base_is_refused_and_nothing_is_written(ask, arguments, words):
    run, folder = ask
    done = run(*arguments)
    assert done.returncode == 2 and all(word in done.stderr for word in words), done.stderr
    assert (folder / "params.yaml").read_bytes() == (REPOSITORY / "params.yaml").read_bytes()
    assert "Traceback" not in done.stderr and not list(folder.rglob("PWNED"))


def test_a_gated_model_says_so(ask):
    run, folder = ask
    done = run("owner/locked", token=TOKEN)
    assert done.returncode == 0 and "accept its licence" in done.stdout, done.stderr
    assert load_params(folder / "params.yaml").hub_base("locked").gated


def test_a_base_that_is_only_named_is_completed(ask):
    run, folder = ask
    path = folder / "params.yaml"
    path.write_text(path.read_text().replace("  hub:\n", "  hub:\n    mine: {repository: owner/Tiny-MoE.v1}\n", 1))
    done = run("owner/Tiny-MoE.v1", "--name", "mine")
    assert done.returncode == 0, done.stderr
    assert load_params(path).hub_base("mine").revision == SHA
