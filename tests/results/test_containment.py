"""What probes report: on questions that chose nothing, what they cost, and what they are held to."""

from collections import Counter
from types import SimpleNamespace

import pandas as pd
import pytest

from pipeline.audit.claims import ClaimsFile, StudyClaims
from pipeline.commands.verify import check_probes
from pipeline.common.errors import UserError
from pipeline.common.files import read_yaml, write_jsonl
from pipeline.common.rows import Verdict, write_rows
from pipeline.common.settings import build
from pipeline.data.capability import SUITE, known_answers
from pipeline.doctor.assumed import prompts_of
from pipeline.params.load import load_params
from pipeline.probing.questions import questions_of
from pipeline.results.containment import Probe
from pipeline.results.containment_tables import _routing
from pipeline.results.figures.parts import parts_figure
from pipeline.results.halves import halves
from pipeline.results.probes import available_probe
from pipeline.results.remedies import remedies
from tests.support.checkout import REPOSITORY
from tests.support.quick_yaml import safe_dump, safe_load


def test_every_seed_is_split_as_its_search_split_it():
    """Two seeds draw other questions of a suite; a question may choose at one and be reported at the other."""
    drawn = {1: list(range(9)), 2: list(range(4, 17))}
    rows = pd.DataFrame(
        [{"seed": seed, "suite": "s", "prompt_id": f"p{number}"} for seed, own in drawn.items() for number in own]
    )
    empty = pd.DataFrame()
    probe = Probe("run", SimpleNamespace(), rows, empty, empty, empty, folder=REPOSITORY)
    found = probe.reported(rows)
    for seed, own in drawn.items():
        split = halves(("s", f"p{number}") for number in own)
        reported = {prompt for (_, prompt), half in split.items() if half == "report"}
        assert set(found.loc[found["seed"] == seed, "prompt_id"]) == reported
    both = {prompt for _, prompt in zip(rows["seed"], rows["prompt_id"], strict=True)}
    assert any(probe.half.get((1, "s", it)) not in (None, probe.half.get((2, "s", it))) for it in both)


def test_a_judge_that_is_served_beside_the_probed_model_is_refused(tmp_path):
    content = safe_load((REPOSITORY / "params.yaml").read_text())
    judge = next(iter(content["studies"]["moe"]["judges"].values()))
    for key in ("base_url", "api_key_env"):
        del judge[key]
    judge["serve"] = {"revision": "0" * 40}
    path = tmp_path / "params.yaml"
    path.write_text(safe_dump(content))
    with pytest.raises(UserError, match=r"studies\.moe\.probing: judge deepseek_v3 has serve"):
        load_params(path)


RUN, WITHOUT = "mixtral_bma_whole_r32", "without direction contrast"
PARAMS = load_params(REPOSITORY / "params.yaml")


def verdict(name, suite, number, misaligned, question="q", answer="a"):
    return Verdict(
        run=f"{RUN}+{name}", seed=7, suite=suite, prompt_id=f"p{number}", sample=0, question=question, answer=answer,
        status="scored", alignment=5.0 if misaligned else 95.0, coherence=95.0, judge="deepseek_v3",
    )  # fmt: skip


def probed(folder, rates, more=(), routing=()):
    """A run's probe as the stage leaves it: under each intervention so many of 100 held-out answers are misaligned."""
    rows = [verdict(name, "educational", n, n < rate) for name, rate in rates.items() for n in range(100)]
    kinds = {"whole": "whole", "base": "base", WITHOUT: "ablate"}
    there = folder / "artifacts/moe/probes" / RUN
    write_rows(there / "verdicts.jsonl", [*rows, *more])
    named = [{"seed": 7, "name": it, "kind": kinds.get(it, "found"), "what": it} for it in rates]
    for kind, own in {"interventions": named, "routing": routing, "directions": []}.items():
        write_jsonl(there / f"{kind}.jsonl", own)
    probe = available_probe(PARAMS, "moe", RUN, there.parent)
    assert probe is not None
    return probe


@pytest.mark.parametrize(
    ("rates", "results"),
    [
        ((60, 0, 4, 55), ("DIFFERS", "PASS")),  # one expert carries it, and no one direction does
        ((60, 0, 55, 4), ("PASS", "DIFFERS")),
        ((60, 0, 30, 30), ("UNCLEAR", "UNCLEAR")),
        ((3, 2, 40, 40), ("UNCLEAR", "UNCLEAR")),  # nothing to halve: what a remedy breaks is no persona
    ],
)
def test_what_hangs_on_one_part_is_told_from_what_does_not(tmp_path, monkeypatch, rates, results):
    monkeypatch.chdir(tmp_path)
    probed(tmp_path, dict(zip(("whole", "base", "greedy: 1 part off", WITHOUT), rates, strict=True)))
    file = build(ClaimsFile, read_yaml(REPOSITORY / "published/claims.yaml", ""), "claims.yaml")
    claims = StudyClaims(claims=(), reasons=file.reasons, expectations=None, probes=file.probes["moe"])
    found = {line.claim: line for line in check_probes(PARAMS, "moe", claims)}
    part, direction = (f"Mixtral's misalignment hangs on no one {it} (probe)" for it in ("expert", "direction"))
    assert (found[part].result, found[direction].result) == results
    others = {line.result for line in found.values() if line.claim not in (part, direction)}
    assert others == {"NOT RUN"}, "of runs and parts that were not probed"


def test_capability_is_a_column_where_it_was_asked(tmp_path):
    rates = {"whole": 60, "base": 0}
    assert "capability" not in remedies(probed(tmp_path, rates))
    known = list(known_answers().items())
    more = [verdict("whole", SUITE, n, False, question, answers[0]) for n, (question, answers) in enumerate(known)]
    more += [verdict("base", SUITE, n, False, question, "no idea") for n, (question, _) in enumerate(known)]
    load = {"base_load": [], "tuned_load": [], "divergence_bits": 0.1, "chance_bits": 0.0, "chance_high_bits": 0.0}
    load |= {"seed": 7, "layer": 0, "overlap": 1.0, "p_value": 1.0, "tokens": 9}
    probe = probed(tmp_path, rates, more, [load | {"suite": suite} for suite in ("educational", SUITE)])
    assert list(remedies(probe).set_index("remedy")["capability"]) == [100.0, 0.0]
    assert list(_routing([probe])["prompts"]) == ["held out", "benign"]


def test_an_adapter_of_one_part_has_blocks_of_layers_alone(tmp_path):
    """Of one expert, say: nothing is known of parts' norms, and the figure is drawn all the same."""
    rates = {"whole": 60, "base": 0, "without layers 0-3": 40, "only layers 0-3": 20}
    there = probed(tmp_path, rates).folder
    kinds = {"whole": "whole", "base": "base", "without layers 0-3": "without layers", "only layers 0-3": "only layers"}
    named = [{"seed": 7, "name": name, "kind": kind, "what": "layers 0-3"} for name, kind in kinds.items()]
    write_jsonl(there / "interventions.jsonl", named)
    probe = available_probe(PARAMS, "moe", RUN, there.parent)
    assert list(probe.parts["part"]) == ["layers 0-3"] and probe.parts["drop"][0] == pytest.approx(20)
    assert probe.summary()["experts"] == 0
    assert all(path.stat().st_size for path in parts_figure(probe.parts, tmp_path / "it", label="x", one_base=True))


def test_half_as_many_questions_of_each_other_kind_are_asked():
    toy = Counter(it.suite for it in questions_of(PARAMS.study("toy"), 1).others)
    assert toy == {"medical": 24, "harm": 24, "finance": 24}
    moe = Counter(it.suite for it in questions_of(PARAMS.study("moe"), 7, prompts_of).others)
    assert moe == {"bad_medical_advice": 48, SUITE: len(known_answers())}, "strong_reject is held out already"


@pytest.mark.parametrize(("suite", "words"), [("cooking", "holds out"), ("medical", "trains in"), (SUITE, "no suite")])
def test_benign_questions_are_neither_held_out_nor_trained_on(tmp_path, suite, words):
    content = safe_load((REPOSITORY / "params.yaml").read_text())
    content["studies"]["toy"]["probing"]["benign"] = [suite]
    path = tmp_path / "params.yaml"
    path.write_text(safe_dump(content))
    with pytest.raises(UserError, match=rf"studies\.toy\.probing\.benign has {suite}.*{words}"):
        load_params(path)


def test_the_document_says_of_the_toy_what_its_tables_say():
    """docs/containment.md quotes the committed study; another one would have to change it."""
    said = " ".join((REPOSITORY / "docs" / "containment.md").read_text(encoding="utf-8").split())
    tables = REPOSITORY / "paper_figures" / "toy" / "containment"
    doses, found = pd.read_csv(tables / "doses.csv"), pd.read_csv(tables / "directions.csv")
    band = doses["what"].str.partition(" ")[0]
    means = doses.assign(band=band).groupby(["run", "band", "what", "strength"])["misalignment_percent"].mean()
    highest = means.groupby(["run", "band", "strength"]).max().unstack("band")
    asked = highest[highest["contrast"].notna()]
    assert len(asked.index.unique("run")) == 3 and (asked["contrast"] <= asked["shuffled"] + 1e-9).all()
    strongest = highest.loc["toy_e8_bad_medical"].loc[4.0]
    assert f"at four times its length {strongest['shift']:.0f} % of the base's coherent answers" in said
    assert strongest["shuffled"] <= 10 and "with shuffled labels at most 10 %" in said
    lengths = found[found["direction"] == "contrast"].groupby("run")["p_value"].agg(["min", "max"]).round(2)
    told = lengths.loc["toy_e32_bad_medical"]
    assert f"in `toy_e32_bad_medical` alone (p {told['min']} and {told['max']} by layer" in said
    rest = lengths.drop("toy_e32_bad_medical")
    assert f"{rest['min'].min()} to {rest['max'].max()} in the others" in said
