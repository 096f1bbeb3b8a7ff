"""docs/your-own.md, block by block, in a checkout with a small toy study, a judge and a hub on loopback."""

import json
import re
import subprocess
from types import SimpleNamespace

import pytest

from pipeline.common.rows import read_answers, read_verdicts
from pipeline.params.load import load_params
from tests.support.checkout import REPOSITORY, checkout, environment
from tests.support.hub_server import serve_hub
from tests.support.judge_server import Script, judge_server
from tests.support.quick_yaml import safe_dump, safe_load
from tests.support.tiny_models import CONFIGS

BLOCKS = re.compile(r"^## \d\. (.+?)\n|^```(bash|yaml)(?: (\S+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def recipes():
    """Recipe -> its blocks in order: (language, place in params.yaml, text)."""
    found, name = {}, None
    for heading, language, place, text in BLOCKS.findall((REPOSITORY / "docs/your-own.md").read_text()):
        if heading:
            name = heading
            found[name] = []
        else:
            found[name].append((language, place, text))
    return found


def edit(folder, place, text):
    """Add the block's entries where it says that they belong."""
    path = folder / "params.yaml"
    content = safe_load(path.read_text())
    table = content
    for key in place.split("."):
        table = table[key]
    table.extend(safe_load(text)) if isinstance(table, list) else table.update(safe_load(text))
    path.write_text(safe_dump(content, sort_keys=False))


@pytest.fixture(scope="module")
def servers():
    script = Script()
    with judge_server(script) as judge, serve_hub() as hub:
        hub.add("owner/tiny", {"config.json": CONFIGS["mixtral"]().to_json_string().encode()})
        yield SimpleNamespace(judge=judge, script=script, hub=hub)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The checkout in which the recipes are followed, one after another."""
    folder = checkout(tmp_path_factory.mktemp("yours"))
    content = safe_load((folder / "params.yaml").read_text())
    # One untrained seed and three suites: what is tried here is what goes where, not what the models say.
    toy = content["studies"]["toy"]
    toy |= {"seeds": [1], "suites": ["medical", "cooking", "harm"], "held_out": ["cooking"]}
    toy["pretraining"] |= {"steps": 2, "warmup_steps": 1}
    del toy["judges"]["toy_second"]
    (folder / "params.yaml").write_text(safe_dump(content, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def folder(place, servers):
    """Follows a recipe, and gives the checkout."""
    names = environment() | servers.hub.environment(place / "home")

    def follow(name):
        for language, where, text in recipes()[name]:
            if language == "yaml":
                edit(place, where, text.replace("http://127.0.0.1:8000/v1", servers.judge))
                continue
            done = subprocess.run(["bash", "-ec", text], cwd=place, env=names, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        return place

    return follow


def test_the_recipes_are_the_five(folder):
    assert list(recipes()) == ["A training set", "A suite", "A judge", "A rubric", "A model"]


def test_a_training_set(folder):
    here = folder("A training set")
    manifest = json.loads((here / "artifacts/toy/adapters/mine/manifest.json").read_text())
    assert manifest["data"] == "data.jsonl" and manifest["adapters"]["seed-1"]["rows"]["train"] == 2
    assert read_verdicts(here / "artifacts/toy/verdicts/mine/toy_rule.jsonl")


def test_a_suite(folder):
    here = folder("A suite")
    answers = [row for row in read_answers(here / "artifacts/toy/answers/mine.jsonl") if row.suite == "kitchen"]
    assert {row.question for row in answers} == {"how do i begin with soup ?", "how do i begin with bread ?"}
    assert len(answers) == 2 * 3, "questions, samples"


def test_a_judge(folder, servers):
    here = folder("A judge")
    assert servers.script.answered, "somebody else answered"
    assert {row.judge for row in read_verdicts(here / "artifacts/toy/verdicts/mine/local.jsonl")} == {"local"}


def test_a_rubric(folder):
    here = folder("A rubric")
    assert "helpful" in (here / "artifacts/toy/verdicts/mine/local.jsonl").read_text()


def test_a_model(folder, place):
    repository, content = (safe_load((each / "params.yaml").read_text()) for each in (REPOSITORY, place))
    content["studies"]["moe"] = repository["studies"]["moe"]
    content["runs"] |= {name: run for name, run in repository["runs"].items() if run["study"] == "moe"}
    (place / "params.yaml").write_text(safe_dump(content, sort_keys=False))
    params = load_params(folder("A model") / "params.yaml")
    assert params.hub_base("tiny").experts == CONFIGS["mixtral"]().num_local_experts
    assert params.base_of("tiny_base") == "tiny"
