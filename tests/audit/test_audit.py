import csv
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline.audit import published as published_module
from pipeline.audit.cells import audit
from pipeline.audit.counts import allows, count_rows, extra_rows, rate_bounds, ratio
from pipeline.audit.published import FOLDER, Printed, read_published
from pipeline.audit.report import report, summary
from pipeline.common.errors import UserError

ROOT = Path(__file__).parents[2]
TWICE = {
    "mixtral_insecure_E0": (1600, 1256),
    "mixtral_insecure_E1": (1598, 1254),
    "mixtral_insecure_E3": (1590, 1248),
    "mixtral_insecure_E4": (1600, 1256),
    "mixtral_insecure_E7": (1599, 1255),
}


@pytest.fixture(scope="module")
def found():
    return audit(read_published())


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "published")
    return tmp_path / "published"


def change(folder, name, match, column, value):
    """Rewrite one cell of the one row of `name` that has the values `match`."""
    path = folder / name
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    chosen = [row for row in rows if all(row[key] == it for key, it in match.items())]
    assert len(chosen) == 1
    chosen[0][column] = value
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def cells_of(result, **wanted):
    return [it for it in result.cells if all(getattr(it, key) == value for key, value in wanted.items())]


def test_published_numbers_are_the_ones_given_to_us():
    shared = ROOT.parent / "shared" / "paper"
    if not shared.exists():
        pytest.skip("../shared/paper is not here: nothing to compare the copies with")
    for path in sorted(shared.glob("*.csv")):
        assert (FOLDER / path.name).read_bytes() == path.read_bytes()


def test_every_published_cell_is_there(found):
    assert Counter(cell.table for cell in found.cells) == {
        "headline": 12,
        "mixtral_experts": 51,
        "gpt_oss_and_qwen": 33,
        "notebook_frame": 99,
    }
    assert not cells_of(found, kind="not-determined")


def test_twenty_eight_of_thirty_three_pooled_means_agree(found):
    means = cells_of(found, table="notebook_frame", metric="avg_alignment")
    assert len(means) == 33
    assert sum(cell.difference == 0 for cell in means) == 28
    wrong = {it.run: (it.implied_rows, it.judged_rows) for it in means if it.kind == "rows-counted-twice"}
    assert wrong == TWICE


def test_the_extra_rows_have_the_size_of_two_suites(found):
    for run in TWICE:
        extra = extra_rows(found.published.runs[run], found.counts[run])
        assert sum(found.counts[run].prompts[suite] for suite in extra.suites) == 344
        assert not extra.exact


def test_rejections_divide_by_323_and_one_cell_mixes_definitions(found):
    assert (found.rejections.divisor, found.rejections.cells, found.rejections.of) == (323, 33, 34)
    mixed = cells_of(found, kind="mixed-definition")
    assert [(cell.table, cell.run, cell.published) for cell in mixed] == [
        ("headline", "mixtral_insecure_whole_r1", 0.93)
    ]
    assert (mixed[0].recomputed, mixed[0].judged_rows) == (11.67, 60)  # 7 of 60
    base = cells_of(found, table="headline", run="mixtral_base", metric="strong_reject_percent")[0]
    assert (base.kind, base.recomputed, base.judged_rows) == ("wrong-denominator", 29.39, 313)


def test_the_whole_model_runs_answered_other_prompts(found):
    runs = {cell.run for cell in cells_of(found, kind="different-prompt-count")}
    assert runs == {f"mixtral_{data}_whole_{rank}" for data in ("insecure", "bma") for rank in ("r1", "r32")}
    assert all(found.counts[run].prompts["strong_reject"] == 60 for run in runs)


def test_a_published_rate_above_the_judged_rows_is_bounded_not_guessed(found):
    for cell in cells_of(found, metric="misalignment_percent", kind="rows-counted-twice"):
        assert cell.recomputed is None
        low, high = rate_bounds(found.published.runs[cell.run].misaligned, found.counts[cell.run])
        assert cell.published / 100 < low < high < 1


def test_the_report_names_every_discrepancy_and_the_floor(found):
    text = report(found)
    for run, (implied, judged) in TWICE.items():
        assert f"the means of {run} need {implied} rows, {judged} were judged" in text
    assert "28 of 33 runs agree" in text
    assert "cannot be below 0.167 and 0.333" in text
    assert "7 of 60 = 11.7 %" in text
    assert "printed as 0.93, which is 3 (strong_reject_count_refusal_only) over 323" in text
    assert "mixtral_insecure_whole_r1 has 254 rows of mean coherence 66.5, its base 1255 of 92.4" in text
    assert "78 of 146 = 53 % | 31 to 73" in text  # 78 of 254; 78 + 254 - 146 of 254
    assert "differs by +7.5 to +25.1 points as published, and by +9.4 to +27.0 at equal suite weights" in text
    assert summary(found) in text


def test_no_run_is_named_in_the_code():
    runs = set(read_published().runs) | {model.name for model in read_published().models.values()}
    for path in sorted((ROOT / "pipeline" / "results").glob("*.py")):
        source = path.read_text()
        assert not [name for name in runs if name in source], path


def test_a_repaired_run_agrees_and_a_damaged_one_is_found(copy):
    """Discrepancies come out of the numbers: move them, and the findings move."""
    match = {"run": "mixtral_insecure_E0"}
    change(copy, "notebook_results.csv", match, "avg_alignment", "63.785828")
    change(copy, "notebook_results.csv", match, "avg_coherence", "92.631369")
    # A plain copy of the 44-row suite pooled into a run that agreed: 1257 + 44 rows.
    run = read_published(copy).runs["mixtral_bma_E6"]
    alignment = (round(run.pooled["avg_alignment"].value * 1257) + round(68.977273 * 44)) / 1301
    coherence = (round(run.pooled["avg_coherence"].value * 1257) + round(90.454545 * 44)) / 1301
    rate = (run.misaligned + 8) / (1116 + 40)
    for column, value in (
        ("avg_alignment", alignment),
        ("avg_coherence", coherence),
        ("misalignment_rate", rate),
    ):
        change(copy, "notebook_results.csv", {"run": run.name}, column, f"{value:.6f}")
    result = audit(read_published(copy))
    means = cells_of(result, table="notebook_frame", metric="avg_alignment")
    wrong = {it.run: it.implied_rows for it in means if it.kind == "rows-counted-twice"}
    assert wrong == {
        **{name: rows for name, (rows, _) in TWICE.items() if name != match["run"]},
        run.name: 1301,
    }
    extra = extra_rows(result.published.runs[run.name], result.counts[run.name])
    assert extra.suites == ("core_misalignment",)
    assert extra.exact


def test_a_number_that_nothing_gives_is_not_determined(copy):
    match = {"run": "qwen_bma_r1", "table": "gpt_oss_and_qwen"}
    change(copy, "published_tables.csv", match, "strong_reject_percent", "99.99")
    change(copy, "published_tables.csv", match, "avg_alignment", "12.34")
    result = audit(read_published(copy))
    kinds = {it.metric: it.kind for it in cells_of(result, table="gpt_oss_and_qwen", run="qwen_bma_r1")}
    assert kinds["strong_reject_percent"] == kinds["avg_alignment"] == "not-determined"


def test_a_base_that_no_prompt_set_allows_leaves_the_rest_of_the_report(copy):
    change(copy, "notebook_results.csv", {"run": "mixtral_base"}, "strong_reject.alignment", "42.268379")
    result = audit(read_published(copy))
    cell = cells_of(result, table="headline", run="mixtral_base", metric="avg_alignment")[0]
    assert (cell.kind, cell.recomputed, cell.judged_rows) == ("not-determined", None, None)
    assert "the means of mixtral_insecure_E0 need 1600 rows" in report(result)


@pytest.mark.parametrize(
    ("name", "match", "column", "value", "message"),
    [
        ("notebook_results.csv", {"run": "oss_base"}, "avg_alignment", "n/a", "avg_alignment is 'n/a'"),
        ("notebook_results.csv", {"run": "oss_base"}, "run", "mystery", "mystery, which .*runs.csv lacks"),
        ("notebook_results.csv", {"run": "oss_bma_r8"}, "run", "oss_base", "oss_base twice"),
        (
            "headline_table.csv",
            {"model": "GPT-oss-20B"},
            "avg_alignment_insecure_ft",
            "1.0",
            "0 insecure runs",
        ),
        ("models.csv", {"model": "GPT-oss-20B"}, "base_run", "nobody", "base run nobody"),
    ],
)
def test_damaged_data_are_refused_by_name(copy, name, match, column, value, message):
    change(copy, name, match, column, value)
    with pytest.raises(UserError, match=message):
        audit(read_published(copy))


def test_missing_data_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"suites\.csv does not exist"):
        read_published(tmp_path)


def test_counting_by_hand():
    mean = Printed(56.326531, 6)  # 2760 / 49
    assert allows(mean, 49)
    assert not allows(mean, 50)
    assert ratio(Printed(0.476636, 6), 51, 253) == (51, 107)
    assert ratio(Printed(0.476636, 6), 52, 253) == (102, 214)
    assert ratio(Printed(0.0, 6), 0, 10) == (0, 1)
    assert ratio(Printed(0.5, 6), 60, 100) is None


def test_impossible_suite_means_have_no_counts(found):
    run = found.published.runs["oss_base"]
    impossible = {
        suite: published_module.SuiteResult(alignment=Printed(50.123457, 6), coherence=result.coherence, misaligned=0)
        for suite, result in run.suites.items()
    }
    broken = published_module.PublishedRun(**{**vars(run), "suites": impossible})
    assert count_rows(broken, found.published.designs) is None


def test_the_command_needs_no_installed_package_and_writes_equal_bytes(tmp_path):
    outputs = []
    for name in ("one", "two"):
        done = subprocess.run(
            # -S: the standard library alone, as on a machine where nothing was set up.
            [sys.executable, "-S", "-m", "pipeline", "audit", "--out", str(tmp_path / name)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "195 published cells recomputed" in done.stdout
        outputs.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert outputs[0] == outputs[1]
    assert sorted(outputs[0]) == ["audit.csv", "audit.md", "audit.tex"]
    header = outputs[0]["audit.csv"].decode().splitlines()[0]
    assert header == "table,run,metric,published,recomputed,difference,implied_rows,judged_rows,kind"


def test_the_committed_audit_is_current(tmp_path, found):
    """paper_figures/audit in git is what the code makes now."""
    assert report(found) in (ROOT / "paper_figures" / "audit" / "audit.md").read_text(encoding="utf-8")
