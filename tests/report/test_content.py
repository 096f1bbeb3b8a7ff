"""The report's bytes, what a page to share leaves out, and how this run is set beside another."""

import base64
import csv
import gzip
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.report import write
from pipeline.common.errors import UserError
from pipeline.common.rows import read_answers
from pipeline.params.schema import Params
from pipeline.report.compare import compare
from tests.support.checkout import run
from tests.support.synthetic_study import HOSTILE, RUNS, synthetic_study

BY_SEED = Path("paper_figures/toy/by_seed.csv")


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    made = synthetic_study(tmp_path, prompts=2)
    monkeypatch.chdir(tmp_path)
    return made


def rows(page: Path) -> Any:
    """What the explorer is given."""
    packed = re.search(r'id="rows">([^<]*)<', page.read_text(encoding="utf-8"))
    assert packed
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def test_equal_inputs_give_equal_bytes(params: Params) -> None:
    first = write(params, "toy").read_bytes()
    assert write(params, "toy", output=Path("again.html")).read_bytes() == first


def test_every_answer_is_there_once(params: Params) -> None:
    data = rows(write(params, "toy"))
    columns = data["columns"]
    files = [Path(f"artifacts/toy/answers/{run}.jsonl") for run in params.runs_of("toy")]
    answers = [answer for path in files for answer in read_answers(path)]
    assert [data["texts"][place] for place in columns["answer"]] == [answer.answer for answer in answers]
    assert [data["runs"][place]["name"] for place in columns["run"]] == [answer.run for answer in answers]
    assert {len(column) for column in columns.values()} == {len(answers)}
    assert data["runs"][1] == {
        "name": "toy_e8_bad_medical", "model": "e8", "base": "toy_e8_base", "experts": "all experts",
        "data": "bad_medical",
    }  # fmt: skip


def test_text_of_models_is_no_markup_of_the_page(params: Params) -> None:
    page = write(params, "toy").read_text(encoding="utf-8")
    assert not [text for text in HOSTILE if text in page]
    assert page.count("<script") == 2


def test_a_page_to_share_has_no_text_of_prompts_models_or_judges(params: Params) -> None:
    page = write(params, "toy", answers=False, output=Path("share.html"))
    data = rows(page)
    assert data["texts"] == [""]
    text = page.read_text(encoding="utf-8") + json.dumps(data)
    assert not [it for it in HOSTILE if it in text]
    assert "how do i" not in text
    assert len(data["columns"]["run"]) == RUNS * 3 * 7 * 2 * 2
    assert "This copy holds no text" in text


def test_below_paper_figures_answers_are_left_out_unless_asked_for(params: Params) -> None:
    assert rows(write(params, "toy", output=Path("paper_figures/share/report.html")))["texts"] == [""]
    assert len(rows(write(params, "toy", output=Path("paper_figures/share/all.html"), answers=True))["texts"]) > 1
    assert len(rows(write(params, "toy"))["texts"]) > 1


def test_only_hub_answers_wait_for_a_click(tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 'id="gate"' not in write(params, "toy").read_text(encoding="utf-8")
    hub = synthetic_study(tmp_path / "hub", study="moe", prompts=1)
    monkeypatch.chdir(tmp_path / "hub")
    assert 'id="gate"' in write(hub, "moe").read_text(encoding="utf-8")
    assert 'id="gate"' not in write(hub, "moe", answers=False).read_text(encoding="utf-8")


def test_runs_that_were_not_judged_are_said_to_be_missing(params: Params) -> None:
    Path("artifacts/toy/verdicts/toy_e16_base/toy_rule.jsonl").unlink()
    page = write(params, "toy").read_text(encoding="utf-8")
    assert f"{RUNS - 1} of {RUNS}" in page
    assert "Not judged yet, and so not shown: toy_e16_base." in page
    assert '<span class="result not-run">NOT RUN</span>' in page


def moved_copy(folder: Path) -> None:
    """A folder of tables in which the second row's rate is 30 points lower."""
    folder.mkdir()
    with BY_SEED.open(newline="") as stream:
        table = list(csv.DictReader(stream))
    table[1]["misalignment_percent"] = str(float(table[1]["misalignment_percent"]) - 30)
    with (folder / BY_SEED.name).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def test_what_moved_is_told_in_units_of_the_interval(params: Params) -> None:
    moved_copy(Path("other"))
    found = compare("toy", "other")
    first, second, *_ = found.moved
    assert (first.run, first.seed, second.difference) == ("toy_e8_base", "2", 0)
    assert first.difference == pytest.approx(30)
    assert first.units == pytest.approx(3)  # intervals reach 10 points
    assert found.differing == ["by_seed.csv"]
    assert "runs_by_suites.csv" in found.only_here


def test_the_committed_run_and_any_other_revision_are_compared(params: Params, tmp_path: Path) -> None:
    inner = BY_SEED.parent / "containment" / "parts.csv"
    inner.parent.mkdir()
    inner.write_text("part\n")
    for command in (["init", "-q"], ["add", "paper_figures"], ["commit", "-qm", "one"], ["tag", "one"]):
        assert run(tmp_path, "git", *command).returncode == 0
    committed = compare("toy", "HEAD")
    assert (committed.differing, committed.only_here, committed.only_there, committed.cells_moved) == ([], [], [], 0)
    assert committed.cells == RUNS * 7 and "containment/parts.csv" in committed.equal
    moved_copy(tmp_path / "moved")
    BY_SEED.write_bytes((tmp_path / "moved" / BY_SEED.name).read_bytes())
    assert compare("toy", "one").differing == ["by_seed.csv"]
    page = write(params, "toy", compare_with=["moved"]).read_text(encoding="utf-8")
    assert "This run and <code>HEAD</code>" in page
    assert "This run and <code>moved</code>" in page


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("nothing", "neither a folder nor a git revision"),
        ("--output=x", "neither a folder nor a git revision"),
        ("artifacts", r"artifacts/by_seed.csv does not exist"),
    ],
)
def test_what_cannot_be_compared_with_is_refused(params: Params, other: str, message: str) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    with pytest.raises(UserError, match=message):
        compare("toy", other)
