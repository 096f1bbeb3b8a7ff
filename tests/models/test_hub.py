"""A base from a hub as hubs are: `pin`, then `open_base`, as commands; every fault is one sentence."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pipeline.common.files import read_yaml, sha256_file
from tests.support.hub_cache import plain_model
from tests.support.hub_server import SHA, TOKEN, Hub, serve_hub, whole_repository

REPOSITORY = Path(__file__).parents[2]
BASES = {"mixtral": (8, 2), "qwen3_moe": (16, 4), "gpt_oss": (8, 2), "llama": (0, 0)}
SHARD = "model-00002-of-00003.safetensors"
# Commands come by stdin, and each runs in a fork: importing transformers takes longer than all that is tested here.
SHELL = """
import json, os, sys
import accelerate, pipeline.models.complete, transformers.models.auto.modeling_auto
from pipeline.__main__ import main
for line in sys.stdin:
    asked = json.loads(line)
    if not (child := os.fork()):
        os.chdir(asked["folder"])
        os.environ.update(asked["environment"])
        for stream, name, mode in ((0, "in", os.O_RDONLY), (1, "out", os.O_WRONLY), (2, "err", os.O_WRONLY)):
            os.dup2(os.open(f"std{name}", os.O_CREAT | mode | (os.O_TRUNC if stream else 0)), stream)
        exec(asked["before"])
        status = main(asked["command"]) if asked["command"] else 0
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
OPEN = """
from pipeline.models.bases import open_base
from pipeline.common.errors import UserError
try:
    print(open_base("tiny", 1).path)
except UserError as error:
    print(f"refused: {error}")
"""


@dataclass
class Shell:
    """A running hub, and a process beside it that runs commands with that hub."""

    hub: Hub
    home: Path
    process: subprocess.Popen[str]
    plain: dict[str, Path]

    def run(self, folder: Path, command: list[str] | None, before: str, environment: dict[str, str]) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        asked = {"folder": str(folder), "command": command, "before": before, "environment": environment}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("plain")
    plain = {family: plain_model(folder / family, family) for family in BASES}
    for family in ("mixtral", "qwen3_moe", "gpt_oss"):
        split(plain[family])
    with serve_hub() as hub:
        home = tmp_path_factory.mktemp("hf")
        environment = os.environ | hub.environment(home) | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        del environment["HF_HUB_DISABLE_IMPLICIT_TOKEN"]
        process = subprocess.Popen(
            [sys.executable, "-c", SHELL], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        yield Shell(hub, home, process, plain)
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def split(folder: Path, shards: int = 3) -> None:
    """A checkpoint in one file as one in several, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"model-{place % shards + 1:05}-of-{shards:05}.safetensors" for place, name in enumerate(names)}
    for file in sorted(set(places.values())):
        held = {name: tensors[name] for name in names if places[name] == file}
        save_file(held, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@dataclass
class Checkout:
    """A folder whose params.yaml pins one base, from a repository of its own."""

    folder: Path
    shell: Shell

    @property
    def hub(self) -> Hub:
        return self.shell.hub

    @property
    def name(self) -> str:
        return f"owner/{self.folder.name}"

    @property
    def snapshot(self) -> Path:
        return self.shell.home / "hub" / f"models--{self.name.replace('/', '--')}" / "snapshots" / SHA

    def publish(self, family: str = "mixtral", folder: Path | None = None, **changes: Any) -> None:
        """Put a model on the hub amid all that its repository holds, and pin it in params.yaml."""
        files = whole_repository(folder or self.shell.plain[family], family)
        self.hub.add(self.name, files | changes.pop("files", {}), **changes)
        self.pinning(family)

    def pinning(self, family: str, **changes: object) -> None:
        params = read_yaml(REPOSITORY / "params.yaml", "")
        experts, active = BASES[family]
        base = {"repository": self.name, "revision": SHA, "experts": experts, "active": active}
        params["bases"]["hub"]["tiny"] = base | changes
        (self.folder / "params.yaml").write_text(yaml.dump(params, Dumper=yaml.CSafeDumper))

    def pin(self, before: str = "", stdin: str = "", **environment: str) -> str | None:
        """Pin the base; what it says where it refuses, in one line."""
        (self.folder / "stdin").write_text(stdin)
        status = self.shell.run(self.folder, ["pin", "--base", "tiny"], before, environment)
        err = (self.folder / "stderr").read_text()
        if status == 0:
            return None
        assert status == 2 and "Traceback" not in err, err
        (said,) = [line for line in err.splitlines() if line.startswith("error: ")]
        return said

    def refused(self, **how: Any) -> str:
        said = self.pin(**how)
        assert said is not None, "it was pinned"
        return said

    def opened(self) -> str:
        """Where the pinned base lies, or "refused: " and why."""
        (self.folder / "stdin").write_text("")
        assert self.shell.run(self.folder, None, OPEN, {}) == 0, (self.folder / "stderr").read_text()
        return (self.folder / "stdout").read_text().strip()

    @property
    def record(self) -> dict:
        return json.loads((self.folder / "artifacts" / "bases" / "tiny" / "base.json").read_text())


@pytest.fixture
def checkout(tmp_path: Path, shell: Shell) -> Checkout:
    for plan in (shell.hub.cuts, shell.hub.statuses, shell.hub.served, shell.hub.requests):
        plan.clear()
    return Checkout(tmp_path, shell)


@pytest.mark.parametrize("family", BASES)
def test_a_base_of_a_whole_repository_is_pinned_and_opens(checkout: Checkout, family: str) -> None:
    checkout.publish(family)
    assert checkout.pin() is None
    assert checkout.opened() == str(checkout.snapshot)
    record = checkout.record
    assert (record["repository"], record["revision"]) == (checkout.name, SHA)
    # The bytes of the model's own files, and of nothing else that the repository holds.
    ours = {path.name: sha256_file(path) for path in checkout.shell.plain[family].iterdir()}
    assert {name: record["files"][name] for name in ours} == ours
    assert record["files"].keys() - ours <= {"vocab.json", "tokenizer.model"}
    asked = {path for _, path, _ in checkout.hub.requests}
    assert not [path for path in asked if "/original/" in path or "/metal/" in path or path.endswith((".pt", ".bin"))]


def test_without_links_the_hashes_are_still_of_the_bytes(checkout: Checkout) -> None:
    checkout.publish()
    assert checkout.pin("from huggingface_hub import constants; constants.HF_HUB_DISABLE_SYMLINKS = True") is None
    assert not (checkout.snapshot / "config.json").is_symlink()
    assert checkout.record["files"][SHARD] == sha256_file(checkout.shell.plain["mixtral"] / SHARD)
    assert checkout.opened() == str(checkout.snapshot)


def test_a_download_that_breaks_off_goes_on_where_it_was(checkout: Checkout) -> None:
    checkout.publish()
    checkout.hub.cuts[SHARD] = [1000, 20]
    checkout.hub.statuses["config.json"] = [429]
    assert checkout.pin() is None
    assert not checkout.hub.cuts[SHARD]
    assert checkout.record["files"][SHARD] == sha256_file(checkout.shell.plain["mixtral"] / SHARD)


def test_a_hub_that_fails_for_good_is_one_sentence_and_what_came_is_kept(checkout: Checkout) -> None:
    checkout.publish()
    checkout.hub.cuts[SHARD] = [0] * 40
    said = checkout.refused(before="import time; time.sleep = lambda _: None")
    assert "was not fetched to its end" in said and "run this again" in said
    checkout.hub.cuts.clear()
    assert checkout.pin() is None and checkout.opened() == str(checkout.snapshot)


@pytest.mark.parametrize(("token", "words"), [("", "HTTP 401"), ("hf_of_somebody_else", "HTTP 403")])
def test_a_gated_repository_is_one_sentence(checkout: Checkout, token: str, words: str) -> None:
    checkout.publish("llama", gated=True)
    said = checkout.refused(HF_TOKEN=token)
    assert "is gated" in said and words in said and f"https://huggingface.co/{checkout.name}" in said
    assert not token or token not in said
    assert checkout.pin(HF_TOKEN=TOKEN) is None and checkout.opened() == str(checkout.snapshot)


def test_a_repository_that_is_not_there_and_a_commit_that_vanished(checkout: Checkout) -> None:
    checkout.pinning("mixtral")
    assert f"has no repository {checkout.name}" in checkout.refused()
    checkout.publish(revision="f" * 40)
    assert f"has no commit {SHA}" in checkout.refused()
    checkout.publish()
    assert checkout.pin() is None
    del checkout.hub.repositories[checkout.name]
    assert checkout.pin() is None, "what is in the cache needs no hub"


def test_another_model_than_params_say_is_refused_before_its_weights_are_fetched(checkout: Checkout) -> None:
    checkout.publish()
    checkout.pinning("mixtral", experts=16)
    assert "says 16 experts" in checkout.refused()
    for key in ("billions", "active_billions"):
        checkout.pinning("mixtral", **{key: 46.7})
        assert f"{key} is 46.7, but by its configuration {checkout.name} has 0.0" in checkout.refused()
    assert not [path for _, path, _ in checkout.hub.requests if path.endswith(".safetensors")]


def test_a_disk_that_is_too_small_is_refused_with_the_numbers(checkout: Checkout) -> None:
    checkout.publish()
    before = "import collections, shutil; shutil.disk_usage = lambda _: collections.namedtuple('Usage', 'free')(1000)"
    said = checkout.refused(before=before)
    assert "GB are to be fetched" in said and "0.0 GB free" in said
    assert not [path for method, path, _ in checkout.hub.requests if method == "GET" and path.endswith(".safetensors")]


def test_bytes_that_the_hub_does_not_list_are_refused(checkout: Checkout) -> None:
    checkout.publish()
    checkout.hub.served[SHARD] = (checkout.shell.plain["mixtral"] / SHARD).read_bytes()[:-4] + b"\0\0\0\1"
    said = checkout.refused()
    assert SHARD in said and "Delete" in said
    # What it says to do is enough.
    checkout.hub.served.clear()
    (checkout.snapshot / SHARD).resolve().unlink()
    assert checkout.pin() is None and checkout.opened() == str(checkout.snapshot)


@pytest.mark.parametrize("name", [SHARD, "tokenizer_config.json"])
def test_a_pinned_file_that_is_changed_later_is_refused(checkout: Checkout, name: str) -> None:
    checkout.publish()
    assert checkout.pin() is None and checkout.opened() == str(checkout.snapshot)
    blob = (checkout.snapshot / name).resolve()
    before = blob.stat()
    content = bytearray(blob.read_bytes())
    content[-2] ^= 1
    blob.write_bytes(content)
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))  # who tampers can set this back
    said = checkout.opened()
    assert said.startswith("refused: ") and name in said and "changed since" in said


def test_a_file_that_was_put_beside_a_pinned_base_is_refused(checkout: Checkout) -> None:
    checkout.publish()
    assert checkout.pin() is None
    (checkout.snapshot / "chat_template.json").write_text("{}")
    assert "chat_template.json is no file of" in checkout.opened()


def test_a_folder_under_a_commits_name_is_no_pin(checkout: Checkout) -> None:
    checkout.pinning("mixtral")
    shutil.copytree(checkout.shell.plain["mixtral"], checkout.snapshot)
    offline = "from huggingface_hub import constants; constants.HF_HUB_OFFLINE = True"
    assert "cannot be told from another model" in checkout.refused(before=offline)
    checkout.pinning("mixtral", repository=str(checkout.shell.plain["mixtral"]))
    assert "OWNER/NAME" in checkout.refused(before=offline)


def test_code_that_a_repository_brings_is_not_run_whatever_is_answered(checkout: Checkout) -> None:
    marker = checkout.folder / "PWNED"
    config = json.loads((checkout.shell.plain["mixtral"] / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    code = {"evil.py": f"open({str(marker)!r}, 'w').write('yes')\n".encode()}
    checkout.publish(files=code | {"config.json": json.dumps(config | {"model_type": "evil"}).encode()})
    said = checkout.refused(stdin="y\n" * 20)
    assert "config.json cannot be used" in said and "custom code" in said
    # A model that transformers has itself: its own code is used, and nobody is asked.
    shutil.rmtree(checkout.snapshot.parents[1])
    checkout.publish(files=code | {"config.json": json.dumps(config).encode()})
    assert checkout.pin(stdin="y\n" * 20) is None
    assert not marker.exists()


Change = Callable[[dict[str, Any]], dict[str, Any]]


def cut_shard(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1000])


def empty_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("")


def cut_index(folder: Path) -> None:
    text = (folder / "model.safetensors.index.json").read_text()
    (folder / "model.safetensors.index.json").write_text(text[: len(text) // 2])


def index_elsewhere(folder: Path) -> None:
    change_index(folder, lambda places: places | {min(places): "model-00009-of-00003.safetensors"})


def index_upward(folder: Path) -> None:
    change_index(folder, lambda places: places | {min(places): "../../../secret.safetensors"})


def change_index(folder: Path, change: Change) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"weight_map": change(index["weight_map"])}))


def empty_config(folder: Path) -> None:
    (folder / "config.json").write_text("")


def cut_config(folder: Path) -> None:
    (folder / "config.json").write_text((folder / "config.json").read_text()[:60])


def config_of_nothing(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def change_shard(folder: Path, change: Change) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    save_file(change(load_file(shard)), shard, metadata={"format": "pt"})


def lose_tensor(folder: Path) -> None:
    change_shard(folder, lambda tensors: {name: tensors[name] for name in sorted(tensors)[1:]})


def lose_tensor_and_entry(folder: Path) -> None:
    lost = min(load_file(sorted(folder.glob("*.safetensors"))[0]))
    lose_tensor(folder)
    change_index(folder, lambda places: {name: file for name, file in places.items() if name != lost})


def other_type(folder: Path) -> None:
    change_shard(folder, lambda tensors: tensors | {min(tensors): tensors[min(tensors)].to(torch.float8_e4m3fn)})


def other_shape(folder: Path) -> None:
    change_shard(folder, lambda tensors: tensors | {min(tensors): tensors[min(tensors)][:-1].contiguous()})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_shard, ("cannot be read", "bytes, its header asks for")),
        (empty_index, ("model.safetensors.index.json is not valid JSON",)),
        (cut_index, ("model.safetensors.index.json is not valid JSON",)),
        (index_elsewhere, ("names 4 files of weights, of which 1 are not there", "model-00009")),
        (index_upward, ("maps no tensors to files",)),
        (empty_config, ("config.json cannot be used",)),
        (cut_config, ("config.json cannot be used",)),
        (config_of_nothing, ("config.json cannot be used",)),
        (lose_tensor, ("of which 1 are not where it says",)),
        (lose_tensor_and_entry, ("has no tensor",)),
        (other_type, ("is of type F8_E4M3, expected BF16",)),
        (other_shape, ("has shape", "but its config.json asks for")),
    ],
)
def test_a_damaged_checkpoint_is_refused_when_it_is_pinned(
    checkout: Checkout, damage: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    folder = Path(shutil.copytree(checkout.shell.plain["mixtral"], checkout.folder / "damaged"))
    damage(folder)
    checkout.publish(folder=folder)
    said = checkout.refused()
    assert all(word in said for word in words), said
