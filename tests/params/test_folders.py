"""A base in a folder here: hashed and written by add-base, pinned, opened as a hub's, refused once it is another."""

import argparse
import os
import shutil

import pytest
from huggingface_hub import constants

from pipeline import pin
from pipeline.commands import add_base
from pipeline.common.errors import UserError
from pipeline.models.bases import open_base
from pipeline.params.edit import add_entry
from pipeline.params.load import load_params
from tests.support.checkout import REPOSITORY
from tests.support.hub_cache import plain_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return plain_model(tmp_path_factory.mktemp("model"), "mixtral")


@pytest.fixture
def here(tmp_path, monkeypatch, model):
    """A checkout with params.yaml and a model outside of it, and this process in it."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    shutil.copytree(model, tmp_path / "Mine-1")
    (tmp_path / "Mine-1" / "notes.txt").write_text("not read here")
    shutil.copy2(REPOSITORY / "params.yaml", checkout)
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "Mine-1"


def add(folder):
    add_base.main(argparse.Namespace(repository=str(folder), name=None, revision="main"))


def pinned():
    pin.main(argparse.Namespace(base="mine_1"))
    return open_base("mine_1", 1)


def test_a_folder_is_hashed_written_pinned_and_opened(here, capsys):
    add(here)
    base = load_params().hub_base("mine_1")
    assert (base.folder, base.experts, base.active, base.family) == ("../Mine-1", 8, 2, "mixtral")
    assert "dvc repro pin@mine_1" in capsys.readouterr().out
    found = pinned()
    assert (found.name, found.revision) == ("../Mine-1", base.revision)
    assert {path.name for path in found.path.iterdir()} == found.hashes.keys() and "notes.txt" not in found.hashes
    assert (found.path / "model.safetensors").read_bytes() == (here / "model.safetensors").read_bytes()
    assert pinned() == found, "a second time"


def test_where_there_are_no_links_the_files_are_copied(here, monkeypatch):
    def refuse(*_):
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    add(here)
    assert pinned().hashes


@pytest.mark.parametrize("in_place", [True, False])
def test_a_folder_that_is_another_model_now_is_refused(here, in_place):
    add(here)
    pinned()
    path = here / "generation_config.json"
    text = path.read_text() + " "
    if not in_place:
        path.unlink()
    path.write_text(text)
    with pytest.raises(UserError, match=r"bases\.hub\.mine_1\.revision is .*another model now.*add-base \.\./Mine-1`"):
        pin.main(argparse.Namespace(base="mine_1"))
    if in_place:
        with pytest.raises(UserError, match="changed since"):
            open_base("mine_1", 1)
    else:
        assert open_base("mine_1", 1).hashes, "what was pinned is still there"


def test_what_is_no_base_is_refused(here):
    add(here)
    with pytest.raises(UserError, match="mine_1 is there"):
        add(here)
    (here / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        add(here)
    shutil.rmtree(here)
    with pytest.raises(UserError, match=r"folder is '\.\./Mine-1', and there is no such folder"):
        pin.main(argparse.Namespace(base="mine_1"))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"folder": "/abs"}, "folder is '/abs', expected a path from the checkout"),
        ({"folder": "a", "repository": "b/c"}, "it has repository and folder, expected one"),
        ({"folder": ""}, "folder is ''"),
        ({"folder": 3}, "folder is 3, expected text"),
    ],
)
def test_an_entry_that_cannot_be_is_named(here, entry, words):
    with pytest.raises(UserError) as caught:
        add_entry("bases.hub", "mine", entry | {"revision": "0" * 40, "experts": 8, "active": 2})
    assert words in str(caught.value), str(caught.value)
