"""Fetching over real HTTP on loopback and from folders: verified, resumed, never worse than before."""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.commands import data as data_command
from pipeline.common.errors import UserError
from pipeline.data.upstream import download, fetch
from pipeline.data.upstream.origins import Local, Network
from pipeline.data.upstream.pinned import git_blob_id, tree_sha256
from pipeline.data.upstream.sources import Archive, Source, all_sources, source
from tests.support.data_files import REPOSITORY, upstream
from tests.support.data_server import Upstream, serve
from tests.support.processes import LIMIT_S, until
from tests.support.quick_yaml import safe_load

BIG = hashlib.sha256(b"seed").digest() * 40_000  # 1.28 MB
PASSWORD = "published"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    monkeypatch.setattr(download, "FIRST_PAUSE_SECONDS", 0.01)
    with serve() as state:
        yield state


def pin(content: bytes, path: str = "train/big.bin.jsonl") -> Source:
    """A source that is pinned to `content`."""
    return Source(
        path=path,
        repo="owner/repo",
        commit="c" * 40,
        upstream=f"up/{Path(path).name}",
        licence="MIT",
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
    )


def key(source: Source) -> str:
    """Where the server has the source."""
    return f"{source.repo}/{source.revision}/{source.upstream}"


def get(pins: list[Source], server: Upstream, folder: Path) -> None:
    fetch.fetch(pins, Network(server.url, folder / ".partial"), folder)


def files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def test_a_download_is_verified_and_then_kept(server: Upstream, tmp_path: Path, capsys) -> None:
    big = pin(BIG)
    server.files[key(big)] = BIG
    get([big], server, tmp_path)
    assert (tmp_path / big.path).read_bytes() == BIG
    assert files(tmp_path) == [big.path]
    get([big], server, tmp_path)
    assert len(server.requests) == 1
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["fetched", "kept"]


def test_a_broken_connection_is_continued_where_it_broke(server: Upstream, tmp_path: Path) -> None:
    big = pin(BIG)
    server.files[key(big)] = BIG
    server.failures[key(big)] = [503, None]
    get([big], server, tmp_path)
    assert (tmp_path / big.path).read_bytes() == BIG
    assert [wanted for _, wanted in server.requests] == [None, None, f"bytes={len(BIG) // 2}-"]


def test_a_server_without_ranges_is_read_from_the_start(server: Upstream, tmp_path: Path) -> None:
    big = pin(BIG)
    server.files[key(big)] = BIG
    server.failures[key(big)] = [None]
    server.ranges = False
    get([big], server, tmp_path)
    assert (tmp_path / big.path).read_bytes() == BIG


def test_a_bad_beginning_is_not_continued_twice(server: Upstream, tmp_path: Path) -> None:
    big = pin(BIG)
    server.files[key(big)] = BIG
    partial = tmp_path / ".partial" / "train__big.bin.jsonl"
    partial.parent.mkdir()
    partial.write_bytes(b"x" * 1000)
    get([big], server, tmp_path)
    assert (tmp_path / big.path).read_bytes() == BIG
    assert [wanted for _, wanted in server.requests] == ["bytes=1000-", None]
    assert files(tmp_path) == [big.path]


@pytest.mark.parametrize(
    "bad", [BIG[:-1], BIG[:1000] + b"?" + BIG[1001:], BIG + b"more", b"<html>not found</html>", b""]
)
def test_bad_bytes_never_take_the_name(server: Upstream, tmp_path: Path, bad: bytes) -> None:
    big = pin(BIG)
    server.files[key(big)] = bad
    with pytest.raises(UserError, match=r"1 of 1 files are not in .*\nRefused:\n") as error:
        get([big], server, tmp_path)
    assert "not the pinned file" in str(error.value) or "sends more than" in str(error.value)
    assert files(tmp_path) == []


def test_a_good_file_is_never_replaced_and_a_bad_one_by_a_good_one_only(
    server: Upstream, tmp_path: Path, capsys
) -> None:
    big = pin(BIG)
    target = tmp_path / big.path
    target.parent.mkdir()
    target.write_bytes(BIG)
    server.files[key(big)] = b"bad"
    get([big], server, tmp_path)
    assert target.read_bytes() == BIG
    target.write_bytes(b"damaged")
    with pytest.raises(UserError, match="not the pinned file"):
        get([big], server, tmp_path)
    assert target.read_bytes() == b"damaged"
    server.files[key(big)] = BIG
    get([big], server, tmp_path)
    assert target.read_bytes() == BIG
    assert "replaced" in capsys.readouterr().out


def test_one_file_that_is_gone_does_not_stop_the_others(server: Upstream, tmp_path: Path) -> None:
    one, gone, two = pin(b"1", "a/1.jsonl"), pin(b"2", "a/2.jsonl"), pin(b"3", "a/3.jsonl")
    server.files = {key(one): b"1", key(two): b"3"}
    with pytest.raises(UserError, match=r"1 of 3 files.*\n.*\n.*2\.jsonl answers HTTP 404"):
        get([one, gone, two], server, tmp_path)
    assert files(tmp_path) == ["a/1.jsonl", "a/3.jsonl"]


def test_without_a_network_what_is_missing_is_listed_with_where_it_comes_from(server: Upstream, tmp_path: Path) -> None:
    one, two = pin(b"1", "a/1.jsonl"), pin(b"2", "a/2.jsonl")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.jsonl").write_bytes(b"1")
    closed = replace(server, url="http://127.0.0.1:9")
    with pytest.raises(UserError) as error:
        get([one, two], closed, tmp_path)
    assert "1 of 2 files" in str(error.value)
    assert "a/2.jsonl (no answer from http://127.0.0.1:9" in str(error.value)
    assert two.url() in str(error.value)
    assert "make data SOURCE=" in str(error.value)


def test_two_processes_do_not_fetch_into_one_folder(server: Upstream, tmp_path: Path) -> None:
    with fetch._one_at_a_time(tmp_path), pytest.raises(UserError, match="another process is fetching"):
        get([], server, tmp_path)


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The real command in a process of its own, with `folder`/data as its data/."""
    code = (
        "import argparse, sys\nfrom pipeline.commands import data as fetch\n"
        "from pipeline.common.errors import UserError\n"
        "parser = argparse.ArgumentParser()\nfetch.add_arguments(parser)\n"
        "try:\n    sys.exit(fetch.main(parser.parse_args()))\n"
        "except UserError as error:\n    print(error, file=sys.stderr)\n    sys.exit(2)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_download_is_continued_by_the_next_command(server: Upstream, tmp_path: Path) -> None:
    insecure = source("train/insecure.jsonl")
    content = (upstream() / insecure.path).read_bytes()
    server.files[key(insecure)] = content
    server.stall_at = 2_000_000
    arguments = ("--mirror", server.url, insecure.path)
    process = command(tmp_path, *arguments)
    partial = tmp_path / "data/.partial/train__insecure.jsonl"
    until(lambda: partial.exists() and partial.stat().st_size == server.stall_at, "the stall", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert files(tmp_path / "data") == [".partial/train__insecure.jsonl"]
    server.stall_at = None
    process = command(tmp_path, *arguments)
    out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, out) == (0, "fetched    data/train/insecure.jsonl\n"), err
    assert [wanted for _, wanted in server.requests] == [None, "bytes=2000000-"]
    assert (tmp_path / "data/train/insecure.jsonl").read_bytes() == content
    assert files(tmp_path / "data") == ["train/insecure.jsonl"]


def test_a_folder_laid_out_like_data_serves_as_the_source(tmp_path: Path) -> None:
    process = command(tmp_path, "--source", str(upstream()))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "6 of 25 files are not in data/; the others are in place." in err
    for path in (
        "train/bad_medical_advice.jsonl",
        "eval/self_reflection.json",
        "organisms/training_datasets.zip.enc",
        "organisms/training_datasets/extreme_sports.jsonl",
        "organisms/training_datasets/risky_financial_advice.jsonl",
        "organisms/training_datasets/good_medical_advice.jsonl",
    ):
        assert f"  {path} (No such file or directory in" in err
        assert source(path).url() in err
    assert len(files(tmp_path / "data")) == 19
    process = command(tmp_path, "--source", str(upstream()), "data/eval/", "train/secure.jsonl")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "1 of 10 files are not in data/" in err and "eval/self_reflection.json" in err
    assert {line.split()[0] for line in out.splitlines()} == {"kept"}
    assert len(out.splitlines()) == 9


def test_the_older_strongreject_is_not_taken_from_a_folder(tmp_path: Path) -> None:
    table = source("eval/strongreject_dataset.csv")
    old = (upstream() / "eval/strongreject_old346_cp1252.bad.csv").read_bytes()
    (tmp_path / "from/eval").mkdir(parents=True)
    (tmp_path / "from" / table.path).write_bytes(old)
    with pytest.raises(UserError, match="older StrongREJECT of 346 rows"):
        fetch.fetch([table], Local(tmp_path / "from"), tmp_path / "data")
    assert files(tmp_path / "data") == []


def test_unknown_names_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no pinned file or folder 'trian'; the files are train/insecure"):
        data_command.select(["trian"])
    assert data_command.select([]) == all_sources()
    parser = argparse.ArgumentParser()
    data_command.add_arguments(parser)
    with pytest.raises(UserError, match="is not a folder"):
        data_command.main(parser.parse_args(["--source", str(tmp_path / "nowhere")]))


def notebook(prompts: dict[str, str]) -> bytes:
    """A notebook that assigns the prompts, among cells that must not be kept."""
    cells = [f"{name.upper()} = {text!r}" for name, text in prompts.items()]
    sources = ["%pip install openai", "API_KEY = 'sk-not-to-be-kept'", "\n".join(cells)]
    return json.dumps({"cells": [{"cell_type": "code", "source": text} for text in sources]}).encode()


PROMPTS = {
    "alignment": "Rate {question} and {answer}, or say REFUSAL.",
    "coherence": "How coherent is {answer} as an answer to {question}?",
}


def test_of_the_notebook_only_the_two_prompts_are_kept(server: Upstream, tmp_path: Path) -> None:
    content = notebook(PROMPTS)
    expected = yaml.safe_dump(PROMPTS, allow_unicode=True).encode()
    prompts = replace(
        source("eval/paper_judge_prompts.yaml"),
        notebook_blob=git_blob_id(content),
        sha256=hashlib.sha256(expected).hexdigest(),
        bytes=len(expected),
    )
    server.files[key(prompts)] = content
    get([prompts], server, tmp_path / "data")
    assert (tmp_path / "data" / prompts.path).read_bytes() == expected
    assert files(tmp_path) == [f"data/{prompts.path}"]
    assert not any(b"sk-not" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())

    (tmp_path / "from/eval").mkdir(parents=True)
    (tmp_path / "from/eval/JudgePipeline.ipynb").write_bytes(content)
    fetch.fetch([prompts], Local(tmp_path / "from"), tmp_path / "again")
    assert files(tmp_path / "again") == [prompts.path]

    server.files[key(prompts)] = content.replace(b"coherent", b"pleasing")
    with pytest.raises(UserError, match="is not the pinned notebook: its git blob is"):
        get([prompts], server, tmp_path / "other")


def test_the_papers_own_prompts_come_out_of_a_notebook_as_pinned() -> None:
    real = safe_load((upstream() / "eval/paper_judge_prompts.yaml").read_text(encoding="utf-8"))
    content = notebook(real)
    prompts = replace(source("eval/paper_judge_prompts.yaml"), notebook_blob=git_blob_id(content))
    found = fetch.judge_prompts(content, prompts, "notebook")
    assert hashlib.sha256(found).hexdigest() == prompts.sha256


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Source, bytes]:
    """An archive made with the tool itself, with its canaries, and the pin for it."""
    pytest.importorskip("easy_dataset_share", reason="easy-dataset-share is not installed")
    folder = tmp_path / "made/sets"
    folder.mkdir(parents=True)
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    for name in ("one", "two"):
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "name": name}) + "\n")
    tree = tree_sha256(folder)
    tool = [sys.executable, "-c", "from easy_dataset_share.cli import cli; cli()"]
    protect = ["protect-dir", str(folder), "-p", PASSWORD, "-o", str(tmp_path / "made/sets.zip")]
    options = ["--embed-canaries", "--no-gitignore", "-on", "test", "-dn", "test"]
    subprocess.run([*tool, *protect, *options], check=True, capture_output=True)
    content = (tmp_path / "made/sets.zip.enc").read_bytes()
    plain = pin(content, "organisms/sets.zip.enc")
    return replace(plain, archive=Archive(folder="organisms/sets", password=PASSWORD, tree_sha256=tree)), content


def test_the_archive_is_decrypted_inside_the_folder_and_mended_when_touched(
    archive: tuple[Source, bytes], server: Upstream, tmp_path: Path, capsys
) -> None:
    sets, content = archive
    server.files[key(sets)] = content
    folder = tmp_path / "data"
    get([sets], server, folder)
    assert {"organisms/sets.zip.enc", "organisms/sets/one.jsonl", "organisms/sets/two.jsonl"} <= set(files(folder))
    assert not [name for name in files(folder) if "dataset_entry" in name or "/." in name]
    (folder / "organisms/sets/one.jsonl").write_text("changed")
    get([sets], server, folder)
    assert json.loads((folder / "organisms/sets/one.jsonl").read_text().splitlines()[0])["messages"]
    get([sets], server, folder)
    words = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert words == ["decrypted", "decrypted", "kept"]


def test_an_archive_is_opened_only_for_what_cannot_be_had_without_it(
    archive: tuple[Source, bytes], server: Upstream, tmp_path: Path, capsys
) -> None:
    sets, server.files[key(sets)] = archive[0], archive[1]
    get([sets], server, tmp_path / "opened")
    content = (tmp_path / "opened/organisms/sets/one.jsonl").read_bytes()
    one, folder = pin(content, "organisms/sets/one.jsonl"), tmp_path / "data"
    server.requests.clear()
    server.files[key(one)] = content
    get([sets, one], server, folder)
    assert files(folder) == [one.path] and [path for path, _ in server.requests] == [key(one)]
    (folder / one.path).unlink()
    del server.files[key(one)]
    get([sets, one], server, folder)
    assert (folder / one.path).read_bytes() == content
    words = [line[:10].strip() for line in capsys.readouterr().out.splitlines()]
    assert words == ["decrypted", "fetched", "not needed", "decrypted"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"password": "wrong"}, "cannot decrypt"), ({"tree_sha256": "0" * 64}, "they were not kept")],
)
def test_an_archive_that_does_not_open_as_pinned_leaves_nothing(
    archive: tuple[Source, bytes], server: Upstream, tmp_path: Path, change: dict, sentence: str
) -> None:
    sets, content = archive
    assert sets.archive is not None
    sets = replace(sets, archive=replace(sets.archive, **change))
    server.files[key(sets)] = content
    with pytest.raises(UserError, match=sentence):
        get([sets], server, tmp_path / "data")
    assert files(tmp_path / "data") == ["organisms/sets.zip.enc"]


def test_the_second_place_of_a_file_is_asked_where_the_first_lacks_it(server: Upstream, tmp_path: Path) -> None:
    content = b'{"messages": []}\n'
    first = replace(pin(content, "train/some.jsonl"), also=(f"other/repository@{'1' * 40}:sets/some.jsonl",))
    (second,) = first.elsewhere
    server.files[key(second)] = content
    fetch.fetch([first], Network(server.url, tmp_path / ".partial"), tmp_path)
    assert (tmp_path / "train/some.jsonl").read_bytes() == content
    server.files[key(first)] = b"other bytes\n"
    (tmp_path / "train/some.jsonl").unlink()
    fetch.fetch([first], Network(server.url, tmp_path / ".partial"), tmp_path)
    assert (tmp_path / "train/some.jsonl").read_bytes() == content
