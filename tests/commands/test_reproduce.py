"""The whole pipeline on a study cut down to one base and two runs: real stages, real DVC, real kills."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from pipeline.common.errors import UserError
from pipeline.params.load import load_params
from pipeline.params.schema import RUN_STAGES
from pipeline.running import local
from pipeline.running.dvc import repository, repro, wait_for_left_over
from pipeline.running.local import parts_of, share_out
from pipeline.running.progress import Progress
from pipeline.running.status import is_changed
from tests.support.checkout import BASE, REPOSITORY, TUNED, checkout, environment, hashes, reproduce, run
from tests.support.processes import commands_below, ended, freezing, until, until_written
from tests.support.quick_yaml import safe_dump


def test_a_study_ends_with_tables_figures_and_a_headline(finished):
    folder, output = finished
    assert output.startswith("Study: toy, because you asked for it.")
    assert re.search(r"\| bad_advice +\| +[+-][\d.]+ \|", output)
    assert "[  9/9]" in output and "paper_figures/toy/misaligned_by_run.png" in output
    figures = folder / "paper_figures" / "toy"
    for name in ("headline", "runs_by_suites", "refusals", "expectations", "judges"):
        for suffix in ("csv", "md", "tex"):
            assert (figures / f"{name}.{suffix}").stat().st_size > 0
        assert "toy" in (figures / f"{name}.md").read_text()
    # Two judges with the same rules agree on everything.
    assert "| toy_rule | toy_second | alignment |" in (figures / "judges.md").read_text()
    steps = (figures / "trajectory.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in steps[1:]] == [[TUNED, str(step)] for step in range(5)]
    assert steps[1].endswith("False") and sum(line.endswith("True") for line in steps) <= 1
    assert (figures / "along_training.png").stat().st_size > 0
    assert "along_training.png" in (figures / "README.md").read_text()
    metrics = json.loads((folder / "artifacts" / "toy" / "metrics.json").read_text())
    assert set(metrics) == {"bad_advice", "least_coherence"}
    provenance = json.loads((folder / "artifacts" / "toy" / "provenance.json").read_text())
    assert len(provenance["stages"]) == 9 and not provenance["stages_not_recorded"]
    assert {stage["outcome"] for stage in provenance["stages"].values()} == {"done"}
    assert provenance["judges"]["toy_rule"][0]["model"].startswith("toy-rule-judge-")


def test_a_linked_folder_of_outputs_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "artifacts").symlink_to("elsewhere")
    shutil.copy2(REPOSITORY / "params.yaml", tmp_path)
    names = environment() | {"DVC_STAGE": "pretrain@e8", "PYTHONPATH": str(REPOSITORY)}
    for command in (["pretrain", "--base", "pretrain@e8"], ["reproduce", "--study", "toy"]):  # plain dvc, and make
        run = [sys.executable, "-m", "pipeline", *command]
        result = subprocess.run(run, cwd=tmp_path, env=names, capture_output=True, text=True)
        assert result.returncode == 2 and re.search(r"artifacts is a link to .*dvc cache dir --local", result.stderr)


def test_nothing_changed_runs_nothing(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    before = hashes(folder)
    result = reproduce(folder)
    assert result.returncode == 0
    assert "] " not in result.stdout, "a stage was looked at again"
    assert hashes(folder) == before


@pytest.mark.parametrize("jobs", [1, 2, 3, 5])
def test_shares_hold_every_stage_once_and_a_chain_in_order(jobs):
    params = load_params(REPOSITORY / "params.yaml")
    for name in params.studies:
        shares = share_out(params, name, jobs)
        assert all(0 < len(parts) <= jobs for parts in shares.values())
        parts = [part for parts in shares.values() for part in parts]
        ends = [*map(params.stage_of_base, shares), f"probe@{name}", f"aggregate@{name}"]
        assert sorted([*itertools.chain(*parts), *ends]) == sorted(params.stages_of(name))
        for part in parts:
            for place, stage in enumerate(part):
                kind, _, run = stage.partition("@")
                needed = {"train": params.run(run).continues, "sample": run, "judge": run}[kind]
                before = {"train": "train", "sample": "train", "judge": "sample"}[kind]
                assert needed is None or f"{before}@{needed}" in part[:place]


def test_what_fails_stops_what_needs_it_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params, asked = load_params(REPOSITORY / "params.yaml"), []

    def repro(stages: list[str], progress: Progress, *, share_imports: bool) -> str | None:
        asked.extend(stages)
        return f"{stages[0]} failed" if stages[0] in ("pretrain@e8", "train@toy_control_base") else None

    monkeypatch.setattr(local, "repro", repro)
    with pytest.raises(
        UserError, match=r"^pretrain@e8 failed\ntrain@toy_control_base failed\nWhat was finished is kept"
    ):
        local.reproduce(params, "toy", 3)
    left_out = {
        f"{stage}@{run}" for stage in RUN_STAGES for run in params.runs_of("toy") if params.base_of(run) == "e8"
    }
    left_out |= {"sample@toy_control_base", "judge@toy_control_base"}
    assert sorted(asked) == sorted(set(params.stages_of("toy")) - left_out - {"probe@toy", "aggregate@toy"})


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_the_probe_is_at_work_beside_the_last_answers(jobs):
    params = load_params(REPOSITORY / "params.yaml")
    for name in params.studies:
        parts = parts_of(params, name, jobs)
        assert sorted(itertools.chain(*parts)) == sorted(params.stages_of(name))
        probe, aggregate = (f"probe@{name}",), (f"aggregate@{name}",)
        assert {stage for stage in itertools.chain(*parts[probe]) if stage.startswith("train@")} == {
            f"train@{run}" for run in params.runs_of(name)
        }
        assert parts[aggregate] == set(parts) - {aggregate}
        # What is to be done beside it comes after it, and does not wait for it.
        beside = list(parts)[list(parts).index(probe) + 1 : -1]
        assert bool(beside) == (jobs > 1) and all(probe not in parts[part] and parts[part] for part in beside)


def test_a_hub_study_begins_with_its_smallest_base_untrained_and_fetches_the_largest_last():
    params = load_params(REPOSITORY / "params.yaml")
    first, *stages = itertools.chain(*parts_of(params, "moe", 1))
    assert [first, *stages[:3]] == ["pin@gpt_oss", "train@oss_base", "sample@oss_base", "judge@oss_base"]
    bases = [params.base_of(stage.partition("@")[2]) for stage in stages if stage.startswith("train@")]
    assert list(dict.fromkeys(bases)) == ["gpt_oss", "qwen3", "mixtral"] and bases == sorted(
        bases, key=["gpt_oss", "qwen3", "mixtral"].index
    )
    at = {stage: place for place, stage in enumerate(stages)}
    assert at["pin@mixtral"] > max(place for stage, place in at.items() if "@oss_" in stage or "@qwen_" in stage)
    # What costs money behind an API comes after what costs electricity.
    assert list(share_out(params, "realignment", 1)) == ["llama31_8b", "gpt_4o"]


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_parts_are_worked_off_in_order_and_none_before_what_it_needs(jobs):
    one, two, three, four = parts = [(name,) for name in ("one", "two", "three", "four")]
    needs = {one: set(), two: set(), three: {one}, four: {one, two, three}}
    began, ended = [], set()

    def do(part):
        assert needs[part] <= ended
        began.append(part)
        ended.add(part)

    with ThreadPoolExecutor(jobs) as pool:
        assert local.work_off(needs, do, pool, jobs) == []
        assert sorted(began, key=parts.index) == parts and (jobs > 1 or began == parts)
        began.clear()
        fails = {one: "one failed", two: "two failed"}
        assert local.work_off(needs, lambda part: began.append(part) or fails.get(part), pool, jobs) == [
            *fails.values()
        ]
        assert sorted(began, key=parts.index) == [one, two]


@pytest.fixture
def two_stages(tmp_path, monkeypatch):
    """A DVC repository in which stage `second` reads what stage `first` writes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    (tmp_path / ".cache").mkdir()
    stages = {
        "first": {"cmd": "echo a > a", "outs": ["a"]},
        "second": {"cmd": "cat a > b", "deps": ["a"], "outs": ["b"]},
    }
    (tmp_path / "dvc.yaml").write_text(safe_dump({"stages": stages}))
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, env=environment(), check=True)
    return tmp_path


@contextlib.contextmanager
def killed(process):
    try:
        yield
    finally:
        process.kill()


def held(folder, process: int, words: str) -> None:
    """Have DVC's list say that a process reads what stage `first` writes."""
    readers = {"read": {str(folder / "a"): [{"pid": process, "cmd": words}]}, "write": {}}
    (folder / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(readers))


def test_a_living_dvc_that_reads_a_base_is_named(two_stages):
    script = "import time; time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script, "repro", "second"]) as reader, killed(reader):
        held(two_stages, reader.pid, "dvc repro second")
        failure = repro(["first"], Progress(["first"]))
        assert failure is not None and failure.startswith("first failed: ")
        assert f"(PID {reader.pid}): dvc repro second. Wait for these processes" in failure
        # Dead, and collected by nobody.
        reader.kill()
        until(lambda: psutil.Process(reader.pid).status() == psutil.STATUS_ZOMBIE, "its end")
        assert repro(["first", "second"], Progress(["first", "second"])) is None
    assert (two_stages / "b").read_text() == "a\n"


def test_a_number_that_another_process_has_by_now_is_no_reader(two_stages):
    """In a container a new process soon has the number of one that was killed."""
    with subprocess.Popen(["sleep", "600"]) as another:
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            for program in ("dvc", f"emoe-dvc:{boot}:1", "emoe-dvc:another-boot:1"):
                held(two_stages, another.pid, f"{program} repro second")
                assert repro(["first"], Progress(["first"])) is None
        finally:
            another.kill()


def test_what_dvc_knows_of_files_is_in_the_checkout(two_stages, monkeypatch):
    """DVC's own place for it is one folder for every user of the machine, and open to them all."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(two_stages / "everybody"))
    assert repro(["first"], Progress(["first"])) is None
    with repository() as repo:
        assert Path(repo.site_cache_dir).is_relative_to(two_stages / ".dvc" / "tmp" / "site")
    assert any((two_stages / ".dvc" / "tmp" / "site").iterdir()) and not (two_stages / "everybody").exists()


def test_what_a_killed_reproduce_left_is_waited_for_and_said(two_stages, monkeypatch, capsys):
    command = [sys.executable, "-c", "import sys; sys.stdin.read()", "pipeline.running.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        end, wait = process.stdin.close, psutil.wait_procs  # it ends once it is waited for
        monkeypatch.setattr(psutil, "wait_procs", lambda *found, **how: (end(), wait(*found, **how))[1])
        wait_for_left_over()
    assert "Waiting for what an earlier `make reproduce` started here to end (PID " in capsys.readouterr().out
    wait_for_left_over()
    assert capsys.readouterr().out == ""


def test_broken_files_of_dvc_are_an_error_and_what_changed_is_seen(two_stages):
    assert is_changed(["first", "second"])
    assert repro(["first", "second"], Progress(["first", "second"])) is None
    assert not is_changed(["first", "second"])
    (two_stages / "data.dvc").write_text("<<<<<<< HEAD\nouts: []\n=======\n")
    with pytest.raises(UserError, match=r"DVC cannot go on: .*data\.dvc"):
        is_changed(["first", "second"])


# What shows that a stage is in the middle of its work: half of its seeds, a checkpoint, some answers, some replies.
HALF_DONE = {
    "pretrain": "artifacts/bases/e8/seed-1/model.safetensors",
    "train": ".cache/checkpoints/*/checkpoint-2/whole",
    "sample": ".cache/answers/*/*.json",
    "judge": ".cache/verdicts.sqlite-wal",
}


def test_another_checkout_gives_equal_hashes_and_kills_change_nothing(finished, tmp_path):
    """Killed with SIGKILL in the middle of every kind of stage; each time the same command continues.

    With all that it has started, but once alone: then what it has forked ends with it.
    """
    folder = checkout(tmp_path)
    for stage, evidence in HALF_DONE.items():
        # The checkpoint is the one of them that is not there for long.
        there = environment() | (freezing(tmp_path / "freezing", f"*{evidence}") if stage == "train" else {})
        with (folder / "out.log").open("w") as log:
            command = [sys.executable, "-m", "pipeline", "reproduce", "--study", "toy"]
            process = subprocess.Popen(command, cwd=folder, env=there, stdout=log, stderr=log, start_new_session=True)
            until_written(folder, evidence, process)
            started = psutil.Process(process.pid).children(recursive=True)
            if stage == "judge":
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert started and ended(started)
    result = reproduce(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    expected, found = hashes(finished[0]), hashes(folder)
    assert found.keys() == expected.keys()
    assert {name for name in found if found[name] != expected[name]} == set()


def test_a_killed_aggregate_takes_the_processes_that_draw_with_it(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "copy", ignore=shutil.ignore_patterns(".git", ".dvc"))
    command = [sys.executable, "-m", "pipeline", "aggregate", "--study", "toy"]
    with subprocess.Popen(command, cwd=folder, env=environment() | {"PYTHONWARNINGS": "ignore"}) as process:
        aggregate = psutil.Process(process.pid)
        # Git comes and goes before; what draws is forked, and has the aggregate's own words.
        until(lambda: aggregate.cmdline() in commands_below(aggregate), "drawing", process)
        drawing = aggregate.children()
        process.kill()
    assert drawing and ended(drawing)


def test_what_a_kill_cut_short_of_dvcs_own_files_is_made_again(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    before = hashes(folder)
    for path, kept in ((folder / "dvc.lock", 0.6), (folder / ".dvc" / "tmp" / "rwlock", 0.0)):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(kept * len(whole))])
    result = reproduce(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "rwlock cannot be read" in result.stdout
    # What is not in DVC's cache, its figures being git's, is all that is done again.
    log = (folder / ".cache" / "reproduce.log").read_text()
    assert set(re.findall(r"Running stage '(\w+)@", log)) <= {"aggregate"}
    assert hashes(folder) == before


def test_a_failed_stage_says_why_and_the_next_try_finishes(finished, tmp_path):
    folder = checkout(tmp_path)
    for name in ("artifacts", "paper_figures", ".dvc"):
        shutil.copytree(finished[0] / name, folder / name, dirs_exist_ok=True)
    shutil.copy2(finished[0] / "dvc.lock", folder)
    expected = hashes(folder)
    prompts = folder / "pipeline" / "toy" / "judge_prompts.yaml"
    good = prompts.read_text()
    prompts.write_text(good.replace("coherence:", "cohesion:"))
    result = reproduce(folder)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert re.search(r"judge@\S+ failed: error: .*judge_prompts\.yaml", result.stderr), result.stderr
    prompts.write_text(good)
    assert reproduce(folder).returncode == 0
    assert hashes(folder) == expected


def test_plain_dvc_writes_the_same_bytes(finished, tmp_path):
    """`make reproduce` forks its stages and writes their own lines of dvc.lock; DVC starts each, and writes all."""
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    before = hashes(folder)
    result = run(
        folder, "dvc", "repro", "--single-item", "--force", f"train@{TUNED}", f"sample@{BASE}", f"judge@{BASE}"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("Running stage") == 3
    assert hashes(folder) == before


def test_an_experiment_reruns_one_run_and_the_aggregate(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    result = run(folder, "dvc", "exp", "run", "-S", f"runs.{TUNED}.lora.rank=2", "aggregate@toy")
    assert result.returncode == 0, result.stdout + result.stderr
    ran = re.findall(r"Running stage '(\S+)'", result.stdout + result.stderr)
    # Probes need the adapter and no answers: DVC does them after either, and not always in the same order.
    assert [stage for stage in ran if stage != "probe@toy"] == [f"{stage}@{TUNED}" for stage in RUN_STAGES] + [
        "aggregate@toy"
    ]
    assert 1 <= ran.index("probe@toy") < ran.index("aggregate@toy")
    shown = run(folder, "env", "COLUMNS=120", "dvc", "exp", "show", "--only-changed", "--no-pager")
    assert shown.returncode == 0 and "bad_advice" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 120
    difference = run(folder, "dvc", "metrics", "diff", "--json")
    assert difference.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reproduce", "--study", "mo"], "no study 'mo'"),
        (["train", "--run", "toy_e9"], "no run 'toy_e9'"),
        (["sample", "--run", BASE], "holds no weights"),
        (["judge", "--run", BASE], "does not exist; run the stage that makes it"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path, arguments, words):
    shutil.copy2(REPOSITORY / "params.yaml", tmp_path)
    shutil.copytree(REPOSITORY / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    result = run(tmp_path, sys.executable, "-m", "pipeline", *arguments)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: ") and words in result.stderr
    assert "Traceback" not in result.stderr
