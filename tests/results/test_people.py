"""A blind sample for people, and a judge's rate corrected by their labels."""

import csv
import json

import numpy as np
import pytest

from pipeline.__main__ import main
from pipeline.common.errors import UserError
from pipeline.results.definitions import STANDARD
from pipeline.results.people import compare, draw_sample, read_word
from tests.support.studies import simulated_study, verdict_rows


def rows(rate=0.1, prompts=200):
    return verdict_rows("run_a", 1, rate, ("cooking",), np.random.default_rng(0), prompts)


def test_the_sample_is_stratified_blind_and_the_same_for_a_seed():
    verdicts = rows()
    sample = draw_sample(verdicts, STANDARD, 40, seed=3)
    assert sum(item.judged for item in sample.items) == 20 == len(sample.items) - 20
    assert len({item.id for item in sample.items}) == 40
    assert sample.sizes[True] == sum(STANDARD.label(row) is True for row in verdicts)
    assert sample == draw_sample(verdicts[::-1], STANDARD, 40, seed=3)
    assert sample.items != draw_sample(verdicts, STANDARD, 40, seed=4).items
    runs = [item.judged for item in sample.items]
    assert runs != sorted(runs) and runs != sorted(runs, reverse=True), "strata would show in the order"


def test_a_small_stratum_is_taken_whole():
    sample = draw_sample(rows(rate=0.01), STANDARD, 60, seed=0)
    assert len(sample.items) == 60 and sum(item.judged for item in sample.items) == sample.sizes[True] < 30
    with pytest.raises(UserError, match="no answer has a label"):
        draw_sample([], STANDARD, 10, seed=0)


def test_people_correct_the_judges_rate():
    """People agree with 18 of 20 that the judge calls misaligned, and find 2 more in 20 that it calls aligned."""
    judged = {f"m{n}": True for n in range(20)} | {f"a{n}": False for n in range(20)}
    people = {name: int(name[1:]) < 18 if name[0] == "m" else int(name[1:]) < 2 for name in judged}
    found = compare(judged, people, {True: 100, False: 900})
    assert found.judged == 10
    assert found.corrected == pytest.approx(100 * (0.1 * 18 / 20 + 0.9 * 2 / 20))
    assert found.across == pytest.approx(100 * (0.1 * 2 / 20 + 0.9 * 2 / 20))
    assert found.interval.low < found.corrected < found.interval.high
    assert found.kappa == pytest.approx(0.8)
    with pytest.raises(UserError, match="calls aligned has a person's label yet"):
        compare(judged, {"m0": True}, {True: 100, False: 900})


def test_the_corrected_rate_covers_the_truth():
    generator = np.random.default_rng(1)
    truth, covered, trials = 0.15 * 0.8 + 0.85 * 0.05, 0, 600
    for _ in range(trials):
        judged = {f"{label}{n}": label for label in (True, False) for n in range(50)}
        people = {name: bool(generator.random() < (0.8 if label else 0.05)) for name, label in judged.items()}
        low, high = compare(judged, people, {True: 150, False: 850}).interval
        covered += low <= 100 * truth <= high
    assert 0.93 - 0.02 <= covered / trials <= 0.98


def test_words_are_read_and_others_refused():
    assert [read_word(it, "x") for it in ("Misaligned", " a ", "no", "1", "")] == [True, False, False, True, None]
    with pytest.raises(UserError, match=r"line 3, label is 'perhaps'"):
        read_word("perhaps", "f.csv line 3, label")


def test_the_command_draws_and_compares(tmp_path, monkeypatch, capsys):
    simulated_study(tmp_path, seeds=(1,))
    monkeypatch.chdir(tmp_path)
    command = ["label", "--study", "toy"]
    assert main([*command, "--count", "40"]) == 0
    path = tmp_path / "artifacts/toy/labels/sample.csv"
    table = list(csv.DictReader(path.read_text().splitlines()))
    assert len(table) == 40 and list(table[0]) == ["id", "question", "answer", "label"]
    assert "toy_" not in path.read_text() and not any(row["label"] for row in table)
    assert main([*command, "--count", "40"]) == 2, "a file that may hold labels is not written over"
    assert main([*command, "--compare"]) == 2
    judged = json.loads((tmp_path / "artifacts/toy/labels/key.json").read_text())["judged"]
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, table[0].keys())
        writer.writeheader()
        writer.writerows(row | {"label": "misaligned" if judged[row["id"]] else "aligned"} for row in table)
    capsys.readouterr()
    assert main([*command, "--compare"]) == 0
    out = capsys.readouterr().out
    assert "40 answers labelled" in out and "kappa in the sample: 1.00" in out and "judge alone 0" in out
