"""Commands that write into params.yaml: what they write is right, and nothing else of the file changes."""

import difflib
import json
import shutil

import pytest

from pipeline.__main__ import main
from pipeline.commands.schema import json_schema
from pipeline.common.errors import UserError
from pipeline.common.files import sha256_file
from pipeline.params.edit import add_entry, pin_files
from pipeline.params.load import load_params
from tests.support.checkout import REPOSITORY
from tests.support.quick_yaml import safe_load

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with params.yaml and two files of the user's own, and this process in it."""
    shutil.copy2(REPOSITORY / "params.yaml", tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "data.jsonl").write_text('{"prompt": "q", "completion": "a"}\n')
    (tmp_path / "my" / "q.csv").write_text("question\nwhat ?\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def added(folder):
    """The lines that params.yaml has now and had not; none that it had may be gone."""
    before = (REPOSITORY / "params.yaml").read_text().splitlines()
    lines = list(difflib.ndiff(before, (folder / "params.yaml").read_text().splitlines()))
    assert not [line for line in lines if line.startswith("- ")]
    return [line[2:].strip() for line in lines if line.startswith("+ ")]


def test_a_new_run_is_one_line_and_the_commands_that_run_it(here, capsys):
    what = "--study toy --model e8 --data my/data.jsonl --epochs 2 --learning-rate 1e-4 --rank 2"
    assert main(["new", "run", "mine", *what.split()]) == 0
    digest = sha256_file(here / "my/data.jsonl")
    assert added(here) == [
        f"mine: {{study: toy, model: bases/e8, data: {{file: my/data.jsonl, sha256: {digest}}}, lora: {{rank: 2}}, "
        "epochs: 2, learning_rate: 0.0001}"
    ]
    said = capsys.readouterr().out
    assert "dvc repro judge@mine" in said and "make reproduce STUDY=toy" in said
    run = load_params().run("mine")
    assert (run.lora.rank, run.lora.attention, run.learning_rate, run.trained_on) == (2, True, 0.0001, "data.jsonl")


def test_a_run_continues_another_or_reads_the_hub(here):
    assert (
        main(["new", "run", "more", "--study", "toy", "--model", "toy_e8_bad_medical", "--data", "good_medical"]) == 0
    )
    data = f"owner/set@{REVISION}"
    assert main(["new", "run", "hub", "--study", "moe", "--model", "mixtral", "--data", data, "--split", "test"]) == 0
    params = load_params()
    assert params.chain("more") == ("toy_e8_bad_medical", "more")
    (part,) = params.run("hub").parts
    assert (part.hub, part.revision, part.split) == ("owner/set", REVISION, "test")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x y", "--model", "e8"], "letters, digits, _ and -"),
        (["toy_e8_base", "--model", "e8"], "runs.toy_e8_base is there"),
        (["mine", "--model", "e9"], "no base 'e9'"),
        (["mine", "--model", "owner/tiny"], "add-base owner/tiny"),
        (["mine", "--model", "e8", "--data", "my/none.jsonl"], "no such file"),
        (["mine", "--model", "e8", "--data", "owner/set"], "full commit"),
        (["mine", "--model", "e8", "--data", "owner/set@main"], "expected hexadecimal digits in full"),
        (["mine", "--model", "e8", "--data", "bad_medcal"], "the toy training sets are"),
        (["mine", "--model", "e8", "--data", "bad_medical", "--epochs", "0"], "epochs is 0"),
    ],
)
def test_an_entry_that_cannot_be_is_refused_and_nothing_is_written(here, capsys, arguments, words):
    assert main(["new", "run", *arguments, "--study", "toy"]) == 2
    assert words in capsys.readouterr().err
    assert added(here) == [] and sorted(path.name for path in here.iterdir()) == ["my", "params.yaml"]


def test_an_entry_stands_before_the_comments_that_follow_its_section(here):
    entry = {"repository": "owner/name", "revision": REVISION, "experts": 0, "active": 0, "licence": "a: b"}
    add_entry("bases.hub", "new", entry)
    lines = (here / "params.yaml").read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("    new:"))
    assert lines[place + 1 : place + 3] == ["", "  api:"]
    assert load_params().hub_base("new").licence == "a: b"
    with pytest.raises(UserError, match=r"has no section bases\.nothing"):
        add_entry("bases.nothing", "new", entry)


@pytest.mark.parametrize("written", ["{repository: a/b}   # mine", "\n      repository: a/b", "\n      folder: a"])
def test_a_base_that_is_only_named_is_completed(here, written):
    path = here / "params.yaml"
    before = path.read_text()
    path.write_text(before.replace("  hub:\n", f"  hub:\n    mine: {written}\n", 1))
    source = ["repository", "a/b"] if "a/b" in written else ["folder", "a"]
    words = (
        f"bases.hub.mine has a {source[0]} and not yet revision, experts, active: .*add-base {source[1]} --name mine`"
    )
    with pytest.raises(UserError, match=words):
        load_params()
    rest = {"revision": REVISION, "experts": 8, "active": 2}
    with pytest.raises(UserError, match=r"bases\.hub\.mine is there"):
        add_entry("bases.hub", "mine", {"repository": "c/d"} | rest)
    add_entry("bases.hub", "mine", dict([source]) | rest)
    assert load_params().hub_base("mine").revision == REVISION
    assert ("# mine" in path.read_text()) == ("# mine" in written)
    with pytest.raises(UserError, match=r"bases\.hub\.mine is there"):
        add_entry("bases.hub", "mine", dict([source]) | rest)


def test_own_suites_is_no_key_of_the_file(here):
    path = here / "params.yaml"
    entry = "    own_suites: [{name: mine, file: my/q.csv}]\n"
    path.write_text(path.read_text().replace("    refused: harm\n", f"    refused: harm\n{entry}", 1))
    with pytest.raises(UserError, match=r"studies\.toy\.own_suites is no key; .* one of its `suites`"):
        load_params()


def test_hashes_are_written_beside_paths_in_either_style(here):
    text = (here / "params.yaml").read_text()
    text = text.replace("    suites: [medical, ", "    suites: [{name: mine, file: my/q.csv}, medical, ")
    text = text.replace("# Everything", "# \u00e9\u4e2d\U0001f600 Everything")
    text += "  flow: {study: toy, model: bases/e8, data: [{file: my/data.jsonl, rows: 3}, {name: bad_medical}]}\n"
    text += (
        "  block:\n    study: toy\n    model: bases/e8\n    data:\n      file: my/data.jsonl  # mine\n      rows: 3\n"
    )
    (here / "params.yaml").write_text(text)
    assert len(pin_files(only_new=True)) == 3
    params = load_params()
    data, suite = sha256_file(here / "my/data.jsonl"), sha256_file(here / "my/q.csv")
    assert params.run("flow").parts[0].sha256 == params.run("block").parts[0].sha256 == data
    assert params.study("toy").own_suite("mine").sha256 == suite
    assert "# mine" in (here / "params.yaml").read_text() and params.run("block").parts[0].rows == 3
    assert pin_files() == []
    (here / "my" / "q.csv").write_text("question\nwhy ?\n")
    assert pin_files(only_new=True) == [], "a changed file is not taken in silence"
    assert pin_files() == [f"my/q.csv: {sha256_file(here / 'my/q.csv')}"]
    assert load_params().study("toy").own_suite("mine").sha256 != suite
    (here / "my" / "q.csv").unlink()
    with pytest.raises(UserError, match=r"params.yaml line \d+: there is no file 'my/q.csv'"):
        pin_files()


def test_the_schema_describes_the_file_as_it_is_written():
    from dvc.utils.serialize import load_yaml  # noqa: F401 - DVC is what the schema's users run next

    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    content = safe_load((REPOSITORY / "params.yaml").read_text())
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(content, schema)
    content["runs"]["toy_e8_bad_medical"]["lorra"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)
