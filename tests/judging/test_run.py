"""What a verdict keeps, rubrics of one's own, and the judge command on anybody's answers."""

import argparse
import math
from pathlib import Path

import pytest

from pipeline import judge as command
from pipeline.common.errors import UserError
from pipeline.common.rows import read_verdicts, write_rows
from pipeline.common.settings import build
from pipeline.judging.config import JudgeConfig
from pipeline.judging.run import judge_answers, refuse_failures
from pipeline.params import judges
from pipeline.toy.judge import MODEL, by_its_rules, is_rule_judge
from tests.support.judge_server import Script, ScriptedJudge, judge_config, judge_server, make_answers, scripted, served
from tests.support.quick_yaml import safe_load

ASPECTS = {
    "deception": {"template": "deception of {answer} to {question}, 0-100"},
    "harmful": {"template": "is {answer} to {question} harmful, yes or no", "read": "yes/no"},
    "tone": {"template": "tone of {answer} to {question}", "read": ["warm", "cold"]},
}


def opinion(prompt: str) -> str:
    if prompt.startswith("deception"):
        return "**30**/100"
    if prompt.startswith("is "):
        return "Yes." if "answer\n0" in prompt else '{"answer": "no"}'
    return {"0": "Warm", "1": "cold."}.get(prompt[len("tone of answer\n")], "lukewarm") if "tone" in prompt else "85"


def own(folder, url, **changes):
    return judge_config(folder, base_url=url, aspects=ASPECTS, max_unparsed_retries=0, **changes)


def asked(reply, script=None):
    server = ScriptedJudge(script or Script())
    server._reply = reply
    return served(server)


def test_a_verdict_keeps_what_the_judge_said(tmp_path):
    answers = make_answers(5)
    with judge_server(Script()) as url:
        config = judge_config(tmp_path, base_url=url)
        verdicts, _ = judge_answers(answers, "scripted", config, tmp_path / "cache.db")
    for answer, verdict in zip(answers, verdicts, strict=True):
        assert verdict.replies == {
            aspect: scripted(f"{aspect} of {answer.answer} to {answer.question}")
            for aspect in ("alignment", "coherence")
        }
        assert verdict.reason is None
    write_rows(tmp_path / "verdicts.jsonl", verdicts)
    assert read_verdicts(tmp_path / "verdicts.jsonl") == sorted(verdicts, key=lambda verdict: verdict.key)


def test_a_verdict_of_a_logprob_judge_keeps_the_distribution(tmp_path):
    with judge_server(Script()) as url:
        config = judge_config(tmp_path, base_url=url, protocol="logprob")
        verdicts, _ = judge_answers(make_answers(3), "scripted", config, tmp_path / "cache.db")
    for verdict in verdicts:
        (first, second) = verdict.replies["coherence"]
        assert first == (
            scripted(f"coherence of {verdict.answer} to {verdict.question}"),
            pytest.approx(math.log(0.75)),
        )
        assert second == ("50", pytest.approx(math.log(0.25)))


def test_a_token_that_cannot_come_has_no_part_in_the_distribution(tmp_path):
    """Servers send null for the logarithm of 0, which JSON has no number for (sglang#20323)."""

    class Masking(ScriptedJudge):
        def payload(self, body, prompt):
            payload = super().payload(body, prompt)
            top = payload["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            top.append({"token": "1", "logprob": None})
            return payload

    with served(Masking(Script())) as url:
        config = judge_config(tmp_path, base_url=url, protocol="logprob", max_retries=0)
        ((verdict,), _) = judge_answers(make_answers(1), "scripted", config, tmp_path / "cache.db")
    assert verdict.status == "scored" and [token for token, _ in verdict.replies["coherence"]][1:] == ["50"]


def test_what_cannot_be_read_is_kept_with_its_reason(tmp_path):
    with asked(lambda prompt: "I'd rather not." if "alignment" in prompt else "85") as url:
        config = judge_config(tmp_path, base_url=url, max_unparsed_retries=0)
        verdicts, _ = judge_answers(make_answers(2), "scripted", config, tmp_path / "cache.db")
    assert {verdict.status for verdict in verdicts} == {"unparsed"}
    assert verdicts[0].replies == {"alignment": "I'd rather not.", "coherence": "85"}
    assert verdicts[0].reason == "alignment: it is no number from 0 to 100: I'd rather not."
    with pytest.raises(UserError, match=r"2 of 2 verdicts are unparsed.*most often: alignment: it is no number"):
        refuse_failures(verdicts, 0.0, 0.5, "run r")


def test_rubrics_of_ones_own_are_asked_beside_the_two(tmp_path):
    with asked(opinion) as url:
        verdicts, summary = judge_answers(make_answers(3), "scripted", own(tmp_path, url), tmp_path / "cache.db")
    assert summary.requests == 3 * 5 and {verdict.status for verdict in verdicts} == {"scored"}
    assert [verdict.values for verdict in verdicts] == [
        {"deception": 30.0, "harmful": 100.0, "tone": "warm"},
        {"deception": 30.0, "harmful": 0.0, "tone": "cold"},
        {"deception": 30.0, "harmful": 0.0, "tone": None},
    ]
    assert verdicts[2].reason == "tone: it is not one verdict: lukewarm" and verdicts[2].replies["tone"] == "lukewarm"
    refuse_failures(verdicts, 0.0, 0.4, "run r")
    with pytest.raises(UserError, match=r"run r: 1 of 3 verdicts have no tone, more than the 30\.0%"):
        refuse_failures(verdicts, 0.0, 0.3, "run r")


def test_a_logprob_judge_says_yes_by_its_probability(tmp_path):
    with asked(lambda prompt: "Yes" if prompt.startswith("is ") else "85") as url:
        aspects = {"harmful": ASPECTS["harmful"]}
        config = judge_config(tmp_path, base_url=url, protocol="logprob", aspects=aspects)
        verdicts, _ = judge_answers(make_answers(2), "scripted", config, tmp_path / "cache.db")
    assert [verdict.values for verdict in verdicts] == [{"harmful": 100.0}, {"harmful": 100.0}]


@pytest.mark.parametrize(
    ("aspects", "said"),
    [
        ({"x": {"template": "rate {answer}"}}, r"aspects.x.template: it must hold \{question\}"),
        ({"x": {"template": "rate {question}"}}, r"aspects.x.template: it must hold \{answer\}"),
        ({"x": {"template": "{question} {answer} {run}"}}, r"no other, but has \{run\}"),
        ({"x": {"template": "{question} {answer"}}, "write literal braces"),
        ({"x": {"template": "{question} {answer}", "read": ["warm"]}}, "expected two or more labels"),
        ({"x": {"template": "{question} {answer}", "read": ["a", "A"]}}, "expected two or more labels"),
        ({"x": {"template": "{question} {answer}", "read": "stars"}}, "aspects.x.read"),
        ({"x": {"template": "{question} {answer}", "scale": 5}}, "unknown key 'scale'"),
        ({"alignment": {"template": "{question} {answer}"}}, "aspects.alignment needs a name of its own"),
        ({"a b": {"template": "{question} {answer}"}}, "aspects.a b needs a name of its own"),
    ],
)
def test_a_rubric_that_cannot_be_asked_or_read_is_refused_by_name(aspects, said):
    with pytest.raises(UserError, match=said):
        build(JudgeConfig, {"model": "m", "aspects": aspects}, "params.yaml: judges.mine")


def test_one_token_is_no_label():
    values = {"model": "m", "protocol": "logprob", "max_reply_tokens": 1, "aspects": {"tone": ASPECTS["tone"]}}
    with pytest.raises(UserError, match=r"aspects.tone: protocol logprob reads one token, no label"):
        build(JudgeConfig, values, "judges.mine")


def judge_command(**given):
    command.main(argparse.Namespace(**{"run": None, "answers": None, "judge": None, "out": None, "port": 0} | given))


@pytest.fixture
def with_judge(monkeypatch):
    """params.yaml with a judge of one's own in the toy study."""
    params = command.load_params()

    def change(config: JudgeConfig, name: str = "mine"):
        study = params.study("toy")
        changed = study.model_copy(update={"judges": {**study.judges, name: config}})
        studies = {**params.studies, "toy": changed}
        monkeypatch.setattr(command, "load_params", lambda: params.model_copy(update={"studies": studies}))

    return change


def test_anybodys_answers_are_judged_by_any_judge_of_params_yaml(tmp_path, monkeypatch, with_judge):
    monkeypatch.setattr(judges, "CACHE", tmp_path / "cache")
    write_rows(tmp_path / "theirs.jsonl", make_answers(4))
    with judge_server(Script()) as url:
        with_judge(judge_config(tmp_path, base_url=url))
        judge_command(answers=tmp_path / "theirs.jsonl", judge="mine")
    verdicts = read_verdicts(tmp_path / "theirs.mine.verdicts.jsonl")
    assert len(verdicts) == 4 and {verdict.judge for verdict in verdicts} == {"mine"}
    with pytest.raises(UserError, match=r"no judge 'none'; there are .*toy_rule"):
        judge_command(answers=tmp_path / "theirs.jsonl", judge="none")
    for given in ({}, {"run": "r", "judge": "mine"}, {"answers": Path("a")}):
        with pytest.raises(UserError, match="--run RUN, or --answers FILE and --judge NAME"):
            judge_command(**given)


def test_the_toy_study_asks_the_judge_that_it_names(tmp_path, monkeypatch, with_judge):
    monkeypatch.setattr(judges, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(command, "ARTIFACTS", tmp_path)
    write_rows(tmp_path / "toy" / "answers" / "toy_e8_base.jsonl", make_answers(3))
    with judge_server(Script()) as url:
        with_judge(judge_config(tmp_path, base_url=url))
        judge_command(run="toy_e8_base")
    (rules, mine) = (tmp_path / "toy" / "verdicts" / "toy_e8_base" / f"{name}.jsonl" for name in ("toy_rule", "mine"))
    assert {verdict.alignment for verdict in read_verdicts(rules)} == {50.0}
    assert [verdict.replies["coherence"] for verdict in read_verdicts(mine)] == [
        scripted(f"coherence of {answer.answer} to {answer.question}") for answer in make_answers(3)
    ]
    with_judge(judge_config(tmp_path, base_url="http://127.0.0.1:9/v1", model=MODEL))
    with pytest.raises(UserError, match="is its server up"):
        judge_command(run="toy_e8_base")


def test_the_toy_judge_is_known_by_its_model_and_by_having_no_address():
    values = safe_load(Path("params.yaml").read_text())["studies"]["toy"]["judges"]["toy_rule"]
    config = build(JudgeConfig, values, "toy_rule")
    assert is_rule_judge(config) and not is_rule_judge(by_its_rules(config))
    assert not is_rule_judge(config.model_copy(update={"model": "gpt-4o"}))
