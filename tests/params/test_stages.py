"""dvc.yaml and params.yaml together: what makes a stage out of date and what does not, and names a shell would run."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.common.fingerprints import code_hashes
from pipeline.params.load import load_params
from tests.support.checkout import REPOSITORY, environment
from tests.support.quick_yaml import safe_dump, safe_load
from tests.support.recorded import changed, dvc, recorded, toy_study, write_params

TUNED, OTHER, BASE = "toy_e8_bad_medical", "toy_e8_good_medical", "toy_e8_base"
RUNS = (TUNED, OTHER, BASE)


def study():
    content = toy_study(RUNS, ("e8",))
    content["studies"]["toy"] |= {"expectations": [TUNED], "contrasts": {}}
    return content


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A checkout in which everything is done; a test that changes it changes it back."""
    folder = recorded(tmp_path_factory.mktemp("recorded"), study())
    assert changed(folder) == {}
    return folder


@pytest.fixture
def edit(done):
    """A function that appends a line to files of the checkout; afterwards they are as before."""
    before = {}

    def append(*names: str) -> Path:
        for name in names:
            before[name] = (done / name).read_bytes()
            (done / name).write_bytes(before[name] + b"\n# edited\n")
        return done

    yield append
    for name, content in before.items():
        (done / name).write_bytes(content)


def test_what_no_result_depends_on_makes_no_stage_out_of_date(edit):
    """A progress bar, the memory plan, the canary, the audit, doors, the fetching of data."""
    folder = edit(
        "pipeline/sampling/progress.py",
        "pipeline/training/memory.py",
        "pipeline/training/plan.py",
        "pipeline/models/sizes.py",
        "pipeline/models/report.py",
        "pipeline/sampling/canary.py",
        "pipeline/audit/report.py",
        "pipeline/commands/reproduce.py",
        "pipeline/commands/estimate.py",
        "pipeline/running/progress.py",
        "pipeline/doctor/machine.py",
        "pipeline/data/upstream/download.py",
        "pipeline/api/client.py",
        "pipeline/params/checks.py",
        "pipeline/__main__.py",
    )
    assert changed(folder) == {}


def test_every_parameter_that_a_stage_names_is_in_the_file():
    """DVC stops at a key that is not there, and the schema gives some of them a default."""
    stages, params = (safe_load((REPOSITORY / name).read_text()) for name in ("dvc.yaml", "params.yaml"))
    for stage in stages["stages"].values():
        items = params
        for part in stage["foreach"].removeprefix("${").removesuffix("}").split("."):
            items = items[part]
        for key, item in items.items():
            for name in stage["do"].get("params", ()):
                found = params
                for part in name.replace("${key}", key).replace("${item.study}", str(item.get("study"))).split("."):
                    found = found[part]


def test_a_tables_text_makes_the_aggregate_alone_out_of_date(edit):
    assert changed(edit("pipeline/results/tables.py")).keys() == {"aggregate@toy"}


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("pipeline/training/sft.py", {"train"}),
        ("pipeline/sampling/chat.py", {"sample"}),
        ("pipeline/models/adapters.py", {"train", "sample"}),
        ("pipeline/data/suites.py", {"train", "sample"}),
        ("pipeline/judging/parsing.py", {"judge"}),
        ("pipeline/api/completions.py", {"judge"}),
    ],
)
def test_what_results_depend_on_makes_their_stages_out_of_date(edit, name, stages):
    # What draws and judges answers does so for probes; training they see by its adapters.
    probes = {"probe@toy"} if stages != {"train"} else set()
    assert changed(edit(name)).keys() == {f"{stage}@{run}" for stage in stages for run in RUNS} | probes


def test_fingerprints_and_dvc_agree_on_what_code_there_is():
    """Files of a stage's folders, without those that .dvcignore lists, are what resumable work is named by."""
    ignored = {line for line in (REPOSITORY / ".dvcignore").read_text().splitlines() if line.startswith("/pipeline/")}
    assert all((REPOSITORY / line[1:]).is_file() for line in ignored), "a line of .dvcignore names no file"
    stages = safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    for stage, names in {"train": ("train.py", "training", "models"), "sample": ("sampling", "models")}.items():
        assert {f"pipeline/{name}" for name in names} <= set(stages[stage]["do"]["deps"])
        found = {f"/pipeline/{name}" for name in code_hashes(*names)}
        assert found and not found & ignored
        folders = [name for name in names if not name.endswith(".py")]
        files = [path for name in folders for path in (REPOSITORY / "pipeline" / name).rglob("*.py")]
        assert {f"/{path.relative_to(REPOSITORY)}" for path in files} - ignored <= found


def test_no_shell_stands_between_dvc_and_a_stage():
    """It would end at SIGTERM before the stage has stored what is paid for (tests/running/test_supervisor.py)."""
    stages = safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert all(stage["do"]["cmd"].startswith("exec python -m pipeline ") for stage in stages.values())


def test_a_changed_default_trains_its_studys_runs_again_and_nothing_else(done, tmp_path):
    content = study()
    content["studies"]["toy"]["defaults"]["lora"]["rank"] = 4
    write_params(done, content)
    try:
        found = changed(done)
    finally:
        write_params(done, study())
    assert found.keys() == {*(f"train@{run}" for run in RUNS), "aggregate@toy"}
    content = safe_load((REPOSITORY / "params.yaml").read_text())
    content["studies"]["moe"]["defaults"]["lora"]["alpha"] = 16.0
    (tmp_path / "params.yaml").write_text(safe_dump(content))
    before, after = load_params(REPOSITORY / "params.yaml"), load_params(tmp_path / "params.yaml")
    differ = {name for name, run in after.runs.items() if run != before.runs[name]}
    assert differ == {name for name, run in before.runs_of("moe").items() if run.data}


def test_a_run_a_suite_and_a_judge_of_ones_own_make_nothing_else_out_of_date(done):
    """`dvc status` names the stages that are new, those that ask the suite, and the tables."""
    mine = {"study": "toy", "model": "bases/e8", "data": {"file": "my/data.jsonl", "sha256": "0" * 64}}
    suite = {"name": "mine", "file": "my/q.csv", "sha256": "0" * 64, "held_out": True}
    judge = {"model": "m", "base_url": "http://127.0.0.1:8000/v1"}
    own = {f"{stage}@mine" for stage in ("train", "sample", "judge")}
    everything = {f"{stage}@{run}" for stage in ("sample", "judge") for run in RUNS} | {"probe@toy"}
    for change, stages in (
        (lambda c: c["runs"].update(mine=mine), own),
        (
            lambda c: c["studies"]["toy"]["suites"].append(suite),
            {"probe@toy"} | {s for s in everything if s.startswith("sample")},
        ),
        (
            lambda c: c["studies"]["toy"]["judges"].update(mine=judge),
            {"probe@toy"} | {s for s in everything if s.startswith("judge")},
        ),
        (lambda c: c["bases"]["hub"].update(new={"repository": "a/b", "revision": "0" * 40}), {"pin@new"}),
    ):
        content = study()
        change(content)
        write_params(done, content)
        try:
            found = changed(done).keys()
        finally:
            write_params(done, study())
        assert found == stages | {"aggregate@toy"}


def test_the_precision_of_a_base_is_what_it_is_sampled_in(done):
    content = study()
    content["studies"]["toy"]["training"]["precision"] = "bfloat16"
    write_params(done, content)
    try:
        found = changed(done)
    finally:
        write_params(done, study())
    assert f"sample@{BASE}" in found


@pytest.mark.parametrize(
    ("override", "run"),
    [
        (f"runs.{TUNED}.lora.rank=2", TUNED),
        (f"+runs.{OTHER}.lora.rank=2", OTHER),
        ("studies.toy.defaults.lora.rank=2", OTHER),
    ],
)
def test_dvc_changes_one_key_of_a_default(tmp_path, override, run):
    """`dvc exp run -S` edits params.yaml with the function that is called here."""
    from dvc.utils.hydra import apply_overrides

    shutil.copy2(REPOSITORY / "params.yaml", tmp_path)
    apply_overrides(tmp_path / "params.yaml", [override])
    before, after = load_params(REPOSITORY / "params.yaml"), load_params(tmp_path / "params.yaml")
    assert after.run(run).lora == before.run(run).lora.model_copy(update={"rank": 2})
    if run in override:
        assert {name for name, one in after.runs.items() if one != before.runs[name]} == {run}
    with (tmp_path / "params.yaml").open() as stream:
        assert not any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(stream))


SHELL, PATH = '$(touch PWNED) `touch PWNED` "; touch PWNED; touch PWNED #', "../../../x"
NAMES = [(kind, name) for kind in ("run", "study", "base") for name in (SHELL, PATH)]


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_plain_dvc_runs_no_name(tmp_path, kind, name):
    content = study()
    if kind == "run":
        content["runs"] = {name: content["runs"][BASE]}
    elif kind == "base":
        content["bases"]["toy"] = {name: content["bases"]["toy"]["e8"]}
    else:
        content["studies"][name] = content["studies"]["toy"]
        content["runs"][BASE]["study"] = name
    checkout = tmp_path / "one" / "two" / "three"
    checkout.mkdir(parents=True)
    shutil.copy2(REPOSITORY / "dvc.yaml", checkout)
    (checkout / "pipeline").symlink_to(REPOSITORY / "pipeline")
    for folder in ("artifacts/bases/e8", f"artifacts/toy/adapters/{name}", f"artifacts/{name}/adapters/{BASE}"):
        (checkout / folder).mkdir(parents=True, exist_ok=True)
    write_params(checkout, content)
    dvc(checkout, "init", "--no-scm")
    stage = {"run": f"train@{name}", "study": f"train@{BASE}", "base": f"pretrain@{name}"}[kind]
    before = {path for path in tmp_path.rglob("*") if ".dvc" not in path.parts}
    done = subprocess.run(
        ["dvc", "repro", "--single-item", stage], cwd=checkout, env=environment(), capture_output=True, text=True
    )
    assert done.returncode != 0
    said = done.stdout + done.stderr
    # DVC takes the dots of a name for keys, and stops there.
    assert f"has the name {name!r}" in said or (name == PATH and "are missing from 'params.yaml'" in said), said
    made = {path for path in tmp_path.rglob("*") if ".dvc" not in path.parts} - before
    ledger = {checkout / ".cache", *(checkout / ".cache").rglob("*")}  # the stage was tried, and failed
    assert made <= ledger, made
