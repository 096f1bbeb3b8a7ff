"""The keys that widen a study: extra suites, a judge in use or not, more seeds of a base; and the smoke study."""

from dataclasses import replace

import pytest
import yaml

from pipeline.common.errors import UserError
from pipeline.params.inputs import answered_as_often, suite
from pipeline.params.load import load_params
from pipeline.running.smoke import smoke
from tests.support.data_files import REPOSITORY

HUB = ("moe", "realignment", "organisms")


@pytest.fixture
def content():
    return yaml.safe_load((REPOSITORY / "params.yaml").read_text())


def load(content, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_params(path)


def test_extra_suites_are_asked_by_one_key_and_are_no_part_of_the_headline(content, tmp_path):
    before = load(content, tmp_path)
    for study in HUB:
        content["studies"][study]["extra_suites"]["asked"] = True
    after = load(content, tmp_path)
    for study in HUB:
        one, other = before.study(study), after.study(study)
        extra = ("capability", "first_plot_variants", "preregistered", "deception")
        assert other.suites == (*one.suites, *extra) and other.held_out == one.held_out
        samples = other.extra_suites.samples_per_prompt
        prompts = suite(other, "capability", 7)
        assert len(prompts) == 40 and {prompt.samples for prompt in prompts} == {samples}
        plain = tuple(replace(prompt, samples=None) for prompt in prompts)
        assert answered_as_often(other, one.suites[0], plain) == plain


def test_an_unknown_extra_suite_is_named_though_it_is_not_asked(content, tmp_path):
    content["studies"]["moe"]["extra_suites"]["suites"].append("capabilty")
    with pytest.raises(UserError, match=r"studies\.moe\.extra_suites has 'capabilty'; the hub suites are"):
        load(content, tmp_path)


def test_the_open_judge_is_used_by_one_key_and_never_decides(content, tmp_path):
    before = load(content, tmp_path)
    for study in HUB:
        content["studies"][study]["judges"]["open_judge"]["use"] = True
    after = load(content, tmp_path)
    for study in HUB:
        assert tuple(after.study(study).judges) == (*before.study(study).judges, "open_judge")
        assert after.study(study).judge == before.study(study).judge != "open_judge"


def test_a_base_has_more_seeds_than_its_study(content, tmp_path):
    params = load(content, tmp_path)
    assert params.seeds_of("toy_e8_trigger") == (1, 2, 3, 4, 5) and params.seeds_of("toy_e32_base") == (1, 2, 3)
    headline = params.study("toy").contrasts["beyond_control"]
    assert {params.seeds_of(run) for pair in (*headline.pairs, *headline.control) for run in pair} == {(1, 2, 3, 4, 5)}
    content["bases"]["toy"]["control"]["more_seeds"] = [4, 2]
    with pytest.raises(UserError, match=r"bases\.toy\.control\.more_seeds repeats a seed"):
        load(content, tmp_path)


def test_the_smoke_study_is_one_that_can_be_read(content, tmp_path):
    params = load(smoke(content), tmp_path)
    assert set(params.runs) == {"toy_e8_base", "toy_e8_bad_medical"} and params.seeds_of("toy_e8_base") == (1,)
