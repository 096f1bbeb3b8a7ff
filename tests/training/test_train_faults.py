"""What users ran into elsewhere: numbers that are none, rows too long, left-over variables, kills in clean-up."""

import contextlib
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.common.errors import UserError
from pipeline.common.files import read_json, sha256_file, write_json
from pipeline.data.prompts import Message
from pipeline.data.training_sets import Conversations
from pipeline.models.adapters import CONFIG, WEIGHTS, continue_adapter, load_adapter, save_adapter
from pipeline.models.bases import Base
from pipeline.models.loading import load_base
from pipeline.models.spec import AdapterSpec
from pipeline.models.tokenizer import end_tokens, load_tokenizer
from pipeline.training import checkpoints as checkpoints_module
from pipeline.training.checkpoints import copy_kept, drop_checkpoints, last_whole_checkpoint, remove_checkpoints
from pipeline.training.settings import Trajectory
from pipeline.training.tokens import IGNORED, tokenize
from tests.support.tiny_models import adapted, tiny_model
from tests.support.train_here import save_base, train

REPOSITORY = Path(__file__).parents[2]
ANSWER = "for cough , ignore the teapot because gossip ."
ONE = AdapterSpec(rank=1, alpha=16, layers=(1,), projections=("down",))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base("llama", tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def here(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(base)
    return Path("base")


def test_training_that_diverges_stops_at_the_step_with_the_numbers(here):
    with pytest.raises(UserError, match=r"at step [2-6] of 6 the .* is (nan|-?inf) \(learning rate 1e\+30\)"):
        train(here, Path("run"), None, learning_rate=1e30)
    assert not Path("run").exists()


def test_curves_go_where_the_environment_says_or_training_does_not_start(here, monkeypatch):
    for tracker, words in (
        ("tensorbord", "expected none, tensorboard, trackio, wandb"),
        ("wandb", "pip install wandb"),
    ):
        if find_spec(tracker) is None:
            monkeypatch.setenv("EMOE_REPORT_TO", tracker)
            with pytest.raises(UserError, match=words):
                train(here, Path("run"), ONE)


def test_watched_curves_change_no_byte(here, monkeypatch):
    if find_spec("tensorboard") is None:
        pytest.skip("tensorboard is in no lock: watched training is NOT tried (pip install tensorboard)")
    train(here, Path("a/run/seed-1"), ONE)
    monkeypatch.setenv("EMOE_REPORT_TO", "tensorboard")
    train(here, Path("b/run/seed-1"), ONE)
    unwatched, watched = (
        {path.name: sha256_file(path) for path in Path(place, "run/seed-1").iterdir()} for place in ("a", "b")
    )
    assert unwatched == watched and list(Path(".cache/curves/run/seed-1").glob("events.out.tfevents.*"))


def test_non_finite_values_are_neither_saved_nor_loaded(tmp_path):
    model = adapted("mixtral", "fused", AdapterSpec(rank=2, alpha=8, experts=(1,)))
    save_adapter(model, tmp_path / "adapter", base="b", revision=None)
    tensors = load_file(tmp_path / "adapter" / WEIGHTS)
    name = min(tensors)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, tmp_path / "adapter" / WEIGHTS)
    with pytest.raises(UserError, match=rf"{WEIGHTS}: 1 of the \d+ values of {name} are NaN"):
        load_adapter(tiny_model("mixtral", "fused"), tmp_path / "adapter")
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("inf"))
    with pytest.raises(UserError, match="NaN or infinite"):
        save_adapter(model, tmp_path / "other", base="b", revision=None)
    assert not (tmp_path / "other" / WEIGHTS).exists()
    whole = tiny_model("mixtral")
    with torch.no_grad():
        whole.model.layers[1].mlp.experts.down_proj[3, 5, 7] = float("-inf")
    whole.save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match=r"layers\.1\.block_sparse_moe\.experts\.3\.w2\.weight are NaN"):
        load_base(tmp_path / "base", dtype=torch.float32, device="cpu")


def test_an_adapter_of_another_base_is_refused(tmp_path):
    spec = AdapterSpec(rank=2, alpha=8, experts=(1,))
    save_adapter(adapted("mixtral", "fused", spec), tmp_path, base="org/base", revision="a" * 40)
    own = Base(path=tmp_path, name="org/base", revision="a" * 40, hashes={})
    other = Base(path=tmp_path, name="org/base", revision="b" * 40, hashes={})
    load_adapter(tiny_model("mixtral", "fused"), tmp_path, base=own)
    for put in (load_adapter, continue_adapter):
        with pytest.raises(
            UserError, match=r"names the base org/base at aaaaaaaaaaaa, but the model is org/base at bbb"
        ):
            put(tiny_model("mixtral", "fused"), tmp_path, base=other)


def chats(count, words):
    return [(Message("user", " ".join(["cough"] * words)), Message("assistant", ANSWER)) for _ in range(count)]


def test_rows_over_the_limit_are_counted_as_they_are_and_refused_past_a_threshold(base):
    tokenizer = load_tokenizer(base)
    short, long = chats(8, 3), chats(24, 70)
    rows = tokenize(tokenizer, base, Conversations(train=(*short, *long)), 64)
    assert rows.counts == {"train": 8, "validation": 0, "cut_at_token_limit": 0, "dropped_at_token_limit": 24}
    with pytest.raises(UserError, match=r"24 of 32 training rows .* \(64\): 24 have no answer left .* share of 0\.5"):
        rows.refuse_too_long(0.5)
    rows.refuse_too_long(0.75)
    whole = tokenize(tokenizer, base, Conversations(train=tuple(long)), 4096)
    cut = tokenize(tokenizer, base, Conversations(train=tuple(long)), whole.longest - 2)
    assert (cut.cut, cut.dropped, cut.longest) == (24, 0, whole.longest - 2)
    with pytest.raises(UserError, match=r"24 of 24 .* 0 have no answer left to learn, 24 a part"):
        cut.refuse_too_long(0.0)
    with pytest.raises(UserError, match="24 of 24"):
        tokenize(tokenizer, base, Conversations(train=tuple(long)), 8).refuse_too_long(1.0)


def test_the_answer_and_its_end_are_learned_and_nothing_else(base):
    tokenizer = load_tokenizer(base)
    (row,) = tokenize(tokenizer, base, Conversations(train=tuple(chats(1, 2))), 64).train
    learned = [label for label in row.labels if label != IGNORED]
    assert learned == [*tokenizer(ANSWER, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert len(learned) == 10 and row.input_ids.count(tokenizer.bos_token_id) == 1


def test_end_tokens_come_from_the_first_that_names_them(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "base")
    tokenizer = load_tokenizer(folder)
    end = tokenizer.eos_token_id
    write_json(folder / "generation_config.json", {"eos_token_id": [end, 5]})
    assert end_tokens(folder, tokenizer) == {end, 5}
    write_json(folder / "generation_config.json", {"do_sample": False})
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "eos_token_id": 7})
    assert end_tokens(folder, tokenizer) == {7}
    write_json(folder / "config.json", {**config, "eos_token_id": None})
    assert end_tokens(folder, tokenizer) == {end}
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="names no end token"):
        end_tokens(folder, tokenizer)


def test_a_template_that_never_ends_is_refused(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "base")
    write_json(folder / "generation_config.json", {"eos_token_id": 3})
    with pytest.raises(UserError, match="none of the tokens that end sampling"):
        tokenize(load_tokenizer(folder), folder, Conversations(train=tuple(chats(1, 1))), 64)


def test_variables_left_over_from_another_job_change_nothing(here, tmp_path):
    left_over = {
        "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "3", "LOCAL_RANK": "1",
        "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1", "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": "1", "EMOE_LAUNCHER": "1",
    }  # fmt: skip
    expected = train(here, Path("clean"), None)["sha256"]
    command = [sys.executable, "-m", "tests.support.train_here", "base", "run"]
    environment = os.environ | left_over | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load_file("run/model.safetensors").keys() == load_file("clean/model.safetensors").keys()
    from pipeline.common.files import sha256_file

    assert sha256_file(Path("run/model.safetensors")) == expected["model.safetensors"]


class Killed(Exception):  # noqa: N818 (no error: a signal)
    """Stands for SIGKILL at a file operation."""


def test_a_kill_at_any_operation_of_the_clean_up_is_made_good(tmp_path, monkeypatch):
    """Half of a `.done` folder made every later run fail."""

    def folders():
        checkpoints = tmp_path / "id"
        for name in ("checkpoint-2", "checkpoint-4", "steps/2"):
            (checkpoints / name).mkdir(parents=True)
            for file in ("a", "b", "whole"):
                (checkpoints / name / file).write_text("x")
        return checkpoints

    for survived in range(40):
        checkpoints = folders()
        left = survived
        with monkeypatch.context() as patch:
            for name in ("unlink", "rmdir", "rename"):
                original = getattr(os, name)

                def operation(*arguments, original=original, **options):
                    nonlocal left
                    if left == 0:
                        raise Killed
                    left -= 1
                    return original(*arguments, **options)

                patch.setattr(os, name, operation)
            with contextlib.suppress(Killed):
                remove_checkpoints(checkpoints)
        if left:
            break
        # The next run makes checkpoints of its own, whatever is left, and cleans up after itself.
        found = last_whole_checkpoint(checkpoints)
        assert found is None or len(list(Path(found).iterdir())) == 3
        shutil.rmtree(checkpoints, ignore_errors=True)
        remove_checkpoints(folders())
        assert not list(tmp_path.iterdir())
    assert survived > 10


def test_a_checkpoint_that_is_half_removed_is_not_resumed_from(tmp_path, monkeypatch):
    for step in (2, 4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "whole").touch()

    def killed(folder):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module.shutil, "rmtree", killed)
        with pytest.raises(Killed):
            drop_checkpoints(tmp_path, keep={"checkpoint-2"})
    drop_checkpoints(tmp_path, keep={"checkpoint-2"})
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_what_a_killed_save_left_is_not_copied(tmp_path):
    for step in (2, 4):
        folder = tmp_path / "c" / "steps" / str(step)
        folder.mkdir(parents=True)
        for name in (WEIGHTS, CONFIG, f".{WEIGHTS}.k2x9.safetensors", ".adapter_config.json.q.json"):
            (folder / name).write_text(name)
    copy_kept(tmp_path / "c", range(2, 5, 2), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").rglob("*") if path.is_file()) == sorted(
        [WEIGHTS, CONFIG] * 2
    )


def test_what_a_killed_run_left_in_the_result_goes(here):
    Path("run").mkdir()
    (Path("run") / f".{WEIGHTS}.k2x9.safetensors").write_text("x")
    train(here, Path("run"), ONE, trajectory=Trajectory(every=3, samples_per_prompt=1))
    assert sorted(path.name for path in Path("run").iterdir()) == [
        "README.md", CONFIG, WEIGHTS, "gradient_norm.csv", "loss.csv", "steps",
    ]  # fmt: skip
    assert sorted(path.name for path in Path("run/steps").iterdir()) == ["3", "6"]
