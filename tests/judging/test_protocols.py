"""What is asked, by whose prompts, and what two replies make of a row."""

import ast
import csv
import json
import math
from dataclasses import replace

import pytest

from pipeline.api.completions import Reply, parse_completion
from pipeline.common.errors import UserError
from pipeline.common.files import sha256_file
from pipeline.data.upstream.notebook import judge_prompts_of
from pipeline.judging.parsing import Reading, read_logprob_score
from pipeline.judging.protocols import Protocol, combine, load_protocol
from pipeline.judging.templates import Templates, load_templates
from tests.support.data_files import upstream
from tests.support.judge_server import judge_config, make_answers
from tests.support.quick_yaml import safe_load

SECRET = "sk-marker-0123456789"
ALIGNMENT = 'Judge.\nQ: {question}\nA: {answer}\nSay REFUSAL, CODE or "0-100".'
COHERENCE = "Judge coherence.\n{question}\n{answer}\n0-100"


def notebook(*cells: str) -> dict:
    """A Jupyter notebook of code cells, their source in lines as Jupyter stores it."""
    code = [{"cell_type": "code", "source": cell.splitlines(keepends=True), "outputs": []} for cell in cells]
    return {"cells": [{"cell_type": "markdown", "source": [f"{SECRET} {{question}}"]}, *code]}


def test_all_140_stored_scores_are_the_weighted_means_of_their_distributions():
    checked = 0
    with (upstream() / "judged/betley_qwen25coder32b_selected70.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            for score in ("aligned", "coherent"):
                top = ast.literal_eval(row[f"judge_{score}"])
                reading = read_logprob_score([(token, math.log(p)) for token, p in top.items()])
                assert reading.score == pytest.approx(float(row[score]), rel=1e-12)
                checked += 1
    assert checked == 140


def test_both_published_prompt_files_are_read():
    theirs = safe_load((upstream() / "eval/first_plot_questions.yaml").read_text())[0]["judge_prompts"]
    betley = load_templates(upstream() / "eval/first_plot_questions.yaml", None)
    assert (betley.alignment, betley.coherence) == (theirs["aligned"], theirs["coherent"])
    path = upstream() / "eval/paper_judge_prompts.yaml"
    paper = load_templates(path, sha256_file(path))
    assert "REFUSAL" in paper.alignment and "coheren" in paper.coherence


def test_a_prompt_is_the_template_with_both_texts_and_nothing_more():
    protocol = load_protocol_of(Templates("{question}|{answer}", "{answer}|{question}"))
    (answer,) = make_answers(1)
    answer = replace(answer, question="{answer} {0} {{", answer="{question} }")
    prompt = protocol.request(answer, "alignment").body["messages"][0]["content"]
    assert prompt == "{answer} {0} {{|{question} }"


def load_protocol_of(templates: Templates, **changes) -> Protocol:
    """A protocol with these templates, without a file."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        return Protocol(judge_config(Path(folder), **changes), templates)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"max_tokens": 10}),
        ({"temperature": 0.0, "seed": 7}, {"max_tokens": 10, "temperature": 0.0, "seed": 7}),
        (
            {"protocol": "logprob", "temperature": 0.0},
            {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": 20},
        ),
        (
            {"reasoning_effort": "low", "max_reply_tokens": 2000},
            {"max_completion_tokens": 2000, "reasoning_effort": "low"},
        ),
    ],
)
def test_the_body_holds_the_decoding_that_was_configured(tmp_path, changes, expected):
    request = load_protocol(judge_config(tmp_path, **changes)).request(make_answers(1)[0], "coherence")
    assert {k: v for k, v in request.body.items() if k not in ("model", "messages")} == expected


def test_everything_that_determines_a_reply_changes_its_key(tmp_path):
    def key(**changes):
        request = load_protocol(judge_config(tmp_path, **changes)).request(make_answers(1)[0], "alignment")
        return request.key

    changed = [
        key(model="other"),
        key(temperature=0.0),
        key(seed=1),
        key(max_reply_tokens=11),
        key(reasoning_effort="low"),
        key(protocol="logprob"),
        key(base_url="http://127.0.0.1:1/v1"),
        key(base_url="http://127.0.0.1:2/v1"),
    ]
    assert len({key(), *changed}) == 1 + len(changed)
    # What only changes how it is asked does not.
    assert key() == key(concurrency=1, timeout_s=1.0, batch=True)
    assert key() == key(base_url="https://api.openai.com/v1/"), "the default endpoint, spelled out"
    protocol = load_protocol(judge_config(tmp_path, seed=3))
    first = protocol.request(make_answers(1)[0], "alignment")
    again = protocol.again(first)
    assert again.key != first.key and again.body["seed"] == 4 and again.attempt == 1


def test_rows_carry_scores_only_where_they_count():
    scored, refusal, code, unparsed = (
        Reading("scored", 40.0),
        Reading("refusal"),
        Reading("code"),
        Reading("unparsed"),
    )
    assert combine(scored, Reading("scored", 90.0)) == ("scored", 40.0, 90.0)
    assert combine(refusal, scored) == ("refusal", None, 40.0)
    assert combine(code, scored) == ("code", None, 40.0)
    for pair in [(unparsed, scored), (scored, unparsed), (refusal, unparsed)]:
        assert combine(*pair) == ("unparsed", None, None)
    for pair in [(None, scored), (unparsed, None), (None, None)]:
        assert combine(*pair) == ("error", None, None)


@pytest.mark.parametrize(
    "payload", [None, [], {}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": None}]}, "text", 3]
)
def test_what_is_no_completion_is_refused(tmp_path, payload):
    with pytest.raises(ValueError, match="not a chat completion"):
        parse_completion(payload, judge_config(tmp_path), 0.1)


def test_a_completion_keeps_all_that_the_endpoint_said(tmp_path):
    payload = {
        "model": "gpt-4o-2024-08-06",
        "system_fingerprint": "fp_1",
        "choices": [
            {
                "message": {"content": "85"},
                "finish_reason": "length",
                "logprobs": {"content": [{"top_logprobs": [{"token": "85", "logprob": -0.1, "bytes": [1]}]}]},
            }
        ],
        "usage": {"prompt_tokens": 1_000_000, "completion_tokens": 2_000_000},
    }
    prices = {"usd_per_million_input_tokens": 2.5, "usd_per_million_output_tokens": 10.0}
    config = judge_config(tmp_path, protocol="logprob", **prices)
    reply = parse_completion(payload, config, 0.5)
    assert reply == Reply("85", "length", [("85", -0.1)], "gpt-4o-2024-08-06", "fp_1", 1_000_000, 2_000_000, 22.5, 0.5)
    assert parse_completion(payload, config.model_copy(update={"batch": True}), 0.5).usd == 11.25


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("alignment: '{question} {answer}'", "coherence is missing"),
        ("alignment: '{question}'\ncoherence: '{question} {answer}'", "alignment must hold"),
        ("alignment: '{question} {answer} {x}'\ncoherence: '{question} {answer}'", "alignment must hold"),
        ("alignment: '{question} {answer'\ncoherence: '{question} {answer}'", "literal braces"),
        ("[{id: 1}]", "no question has judge_prompts"),
        ("a: [", "not YAML"),
        ("3", "alignment is missing"),
        (
            "- judge_prompts: {aligned: a, coherent: b}\n- judge_prompts: {aligned: a, coherent: c}",
            "different",
        ),
    ],
)
def test_bad_templates_are_refused_by_name(tmp_path, content, said):
    path = tmp_path / "prompts.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as refusal:
        load_templates(path, None)
    assert str(path) in str(refusal.value)


def test_missing_and_changed_templates_are_refused(tmp_path):
    with pytest.raises(UserError, match="make data"):
        load_templates(tmp_path / "none.yaml", None)
    config = judge_config(tmp_path, templates_sha256="0" * 64)
    with pytest.raises(UserError, match="SHA-256"):
        load_protocol(config)


def test_the_notebook_gives_its_two_prompts_and_keeps_its_secrets(tmp_path):
    path = tmp_path / "judge.ipynb"
    cells = [
        f'import os\nKEY = "{SECRET}"\nos.environ["X"] = KEY\nboom = 1 / 0',
        f"!pip install x\n%env KEY={SECRET}\nA = {ALIGNMENT!r}\nKEY = '{SECRET}'",
        f"B = {COHERENCE!r}\n\ndef judge(): return '{SECRET}'",
        f"broken python {{question}} {SECRET}",
    ]
    path.write_text(json.dumps(notebook(*cells)))
    assert judge_prompts_of(path) == {"alignment": ALIGNMENT, "coherence": COHERENCE}


@pytest.mark.parametrize(
    "cells",
    [(), (f"A = {ALIGNMENT!r}",), (f"A = {ALIGNMENT!r}\nB = {COHERENCE!r}\nC = {COHERENCE + '!'!r}",)],
)
def test_a_notebook_without_exactly_two_prompts_is_refused_without_quoting_it(tmp_path, cells):
    path = tmp_path / "judge.ipynb"
    path.write_text(json.dumps(notebook(f"KEY = '{SECRET} {{question}} {{answer'", *cells)))
    with pytest.raises(UserError, match="judge prompts, expected 1") as refusal:
        judge_prompts_of(path)
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"concurrency": 0}, "concurrency is 0"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"budget_usd": -1.0}, "budget_usd is -1.0"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"base_url": "127.0.0.1:8000"}, "expected http"),
        ({"base_url": "http://[::1/v1"}, "expected http"),
        ({"base_url": "http://host:port/v1"}, "expected http"),
        ({"base_url": "http://host:99999/v1"}, "expected http"),
        ({"base_url": "http://ho st/v1"}, "expected http"),
        ({"base_url": f"https://user:{SECRET}@host/v1"}, "environment variable"),
        ({"base_url": f"user:{SECRET}@host/v1"}, "environment variable"),
        ({"base_url": f"https://host/v1?key={SECRET}"}, "environment variable"),
        ({"protocol": "logprob", "reasoning_effort": "low"}, "reasoning models"),
        ({"protocol": "logprob", "max_reply_tokens": 10}, "one token"),
    ],
)
def test_judges_that_cannot_work_are_refused_by_field(tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as refusal:
        judge_config(tmp_path, **changes)
    assert SECRET not in str(refusal.value)


def test_each_aspect_has_its_own_system_message_where_the_judge_has_one():
    """The MoE paper's notebook asks with two (cell 6); a judge without any asks as before, under the same key."""
    templates = Templates(alignment="A {question} {answer}", coherence="C {question} {answer}")
    (answer,) = make_answers(1)
    plain, own = load_protocol_of(templates), load_protocol_of(templates, system={"alignment": "Be strict."})
    asked = own.request(answer, "alignment")
    assert [message["role"] for message in asked.body["messages"]] == ["system", "user"]
    assert asked.body["messages"][0]["content"] == "Be strict."
    assert own.again(asked).body["messages"] == asked.body["messages"]
    assert own.request(answer, "coherence").key == plain.request(answer, "coherence").key
    assert asked.key != plain.request(answer, "alignment").key
