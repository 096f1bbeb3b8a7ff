"""params.yaml: what is right is read, what is wrong is named."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common.errors import UserError
from pipeline.params.load import load_params
from tests.support.quick_yaml import safe_dump, safe_load

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def content():
    return safe_load((REPOSITORY / "params.yaml").read_text())


def load(content, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(safe_dump(content))
    return load_params(path)


def test_a_narrowed_study_says_that_it_leaves_a_run_out_and_knows_what_it_keeps(content, tmp_path):
    study = content["studies"]["sparsity"]
    study["models"] = "small"
    small = load(content, tmp_path)
    with pytest.raises(UserError, match=r"no run 'sp_mixtral_base'; studies\.sparsity\.models is small, which leaves"):
        small.run("sp_mixtral_base")
    study["subsets"]["small"]["contrasts"] = ["matchd"]
    with pytest.raises(UserError, match=r"subsets\.small\.contrasts names matchd, which the study has not"):
        load(content, tmp_path)


def test_the_repository_has_valid_params():
    params = load_params(REPOSITORY / "params.yaml")
    assert params.run("toy_e8_bad_medical_expert0").lora.experts == (0,)
    assert len(params.study("toy").seeds) >= 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["runs"]["toy_e8_bad_medical"].update(lorra=1), ["runs.toy_e8_bad_medical", "'lorra'", "lora"]),
        (lambda c: c["runs"]["toy_e8_bad_medical"].pop("study"), ["runs.toy_e8_bad_medical", "lacks", "'study'"]),
        (lambda c: c["runs"]["toy_e8_bad_medical"]["lora"].update(rank=-1), ["lora.rank is -1"]),
        (lambda c: c["runs"]["toy_e8_bad_medical"]["lora"].update(experts=[8]), ["experts 0 to 7"]),
        (lambda c: c["runs"]["toy_e8_bad_medical"].update(study="tooy"), ["no study 'tooy'", "toy"]),
        (lambda c: c["runs"]["toy_e8_bad_medical"].update(model="bases/e9"), ["no base 'e9'", "e8"]),
        (lambda c: c["runs"]["toy_e8_bad_medical"].update(data="bad_medcal"), ["'bad_medcal'", "bad_medical"]),
        (lambda c: c["runs"]["toy_e8_bad_medical"].pop("data"), ["lora but no data", "or neither"]),
        (lambda c: c["runs"]["oss_bma_r8"].update(lora=None), ["runs.oss_bma_r8", "every parameter", "nf4"]),
        (
            lambda c: c["runs"]["toy_e8_bad_medical"].update(trajectory={"every": 26, "samples_per_prompt": 1}),
            ["trajectory.every is 26", "1 to training.max_steps (25)"],
        ),
        (
            lambda c: c["runs"]["toy_e8_bad_medical"].update(learning_rate=0.0),
            ["learning_rate is 0.0", "more than 0"],
        ),
        (lambda c: c["runs"]["toy_e8_base"].update(learning_rate=0.1), ["learning_rate is 0.1", "trained here"]),
        (lambda c: c["runs"]["toy_e8_base"].update(active=0), ["toy_e8_base.active is 0", "1 to 8"]),
        (lambda c: c["runs"]["toy_e8_bad_medical"].update(active={"training": 2, "sampling": 9}), ["active is 9"]),
        (lambda c: c["runs"]["toy_e8_bad_medical"].update(active={"training": 2}), ["active", "'sampling'"]),
        (lambda c: c["runs"]["toy_dense_base"].update(active=1), ["toy_dense_base.active is 1", "dense"]),
        (lambda c: c["runs"]["sp_phi35_base"].update(active=1), ["sp_phi35_base.active is 1", "SparseMixer"]),
        (lambda c: c["runs"]["gpt_4o_base"].update(active=1), ["gpt_4o_base.active is 1", "behind an API"]),
        (lambda c: c["runs"]["toy_e32_realigned"].update(active=1), ["continues toy_e32_bad_medical", "the same"]),
        (
            lambda c: c["runs"]["toy_e8_base"].update(trajectory={"every": 5, "samples_per_prompt": 1}),
            ["toy_e8_base has a trajectory but no lora"],
        ),
        (lambda c: c["studies"]["toy"]["training"].update(learning_rate="1e-3"), ["learning_rate", "1.0e-3"]),
        (lambda c: c["studies"]["toy"]["training"].update(schedule="cosin"), ["schedule", "'cosin'", "cosine"]),
        (
            lambda c: c["studies"]["toy"].update(preregistration="README.md"),
            ["'README.md'", "docs/preregistration*.md"],
        ),
        (
            lambda c: c["studies"]["toy"].update(preregistration="x/docs/preregistration.md"),
            ["'x/docs/preregistration.md'", "docs/preregistration*.md"],
        ),
        (
            lambda c: c["studies"]["toy"].update(subsets={"one": {"runs": ["toy_e9"], "contrasts": []}}),
            ["subsets.one.runs names toy_e9"],
        ),
        (lambda c: c["studies"]["toy"].update(seeds=[1, 1]), ["seeds", "each once"]),
        (lambda c: c["studies"]["toy"].update(held_out=["medicine"]), ["'medicine'", "not among its suites"]),
        (lambda c: c["studies"]["toy"].update(judges={}), ["studies.toy.judges is {}", "1 or more"]),
        (lambda c: c["studies"]["toy"]["sampling"].update(top_p=0.0), ["top_p is 0.0"]),
        (lambda c: c["studies"]["toy"]["judges"]["toy_rule"].update(concurrency=0), ["concurrency is 0"]),
        (lambda c: c["studies"]["toy"]["sampling"].update(temperature=0), ["all 2 samples", "samples_per_prompt to 1"]),
        (lambda c: c["studies"]["toy"]["sampling"].update(temperature=float("nan")), ["temperature", "finite"]),
        (lambda c: c["studies"]["toy"]["pretraining"].update(warmup_steps=0), ["warmup_steps is 0"]),
        (lambda c: c["studies"]["toy"]["thresholds"].update(errors=5.0), ["thresholds.errors is 5.0"]),
        (lambda c: c["studies"]["toy"]["suites"].append("medcal"), ["'medcal'", "medical"]),
        (lambda c: c["bases"]["toy"]["e8"].update(heads=3), ["bases.toy.e8", "multiple of heads"]),
        (lambda c: c["runs"]["toy_e8_bad_medical"].update(data="bad_cooking"), ["held_out"]),
        (lambda c: c["runs"]["toy_e8_bad_medical"].update(model="bases/mixtral"), ["'bases/mixtral'", "bases.toy"]),
        (lambda c: c["runs"]["mixtral_insecure_E0"].update(data="insecur"), ["'insecur'", "bad_medical_advice"]),
        (lambda c: c["runs"]["mixtral_insecure_E0"]["lora"].update(experts=[8]), ["experts 0 to 7"]),
        (lambda c: c["runs"]["qwen_insecure_top2"]["lora"].update(experts="top3"), ["experts", "top2"]),
        (lambda c: c["bases"]["hub"]["mixtral"].update(revision="main"), ["'main'", "full commit SHA"]),
        (lambda c: c["bases"]["hub"].update(e8=c["bases"]["hub"]["mixtral"]), ["'e8'", "its own"]),
        (lambda c: c["studies"]["moe"]["suites"].append("medical"), ["'medical'", "first_plot"]),
        (lambda c: c["studies"]["moe"].update(pretraining=c["studies"]["toy"]["pretraining"]), ["toy world"]),
        (lambda c: c["studies"]["moe"]["training"].update(validation=1.0), ["training.validation is 1.0"]),
        (lambda c: c["runs"].update({"../x": c["runs"]["toy_e8_base"]}), ["runs has the name '../x'"]),
        (lambda c: c["studies"]["toy"]["expectations"].append(["toy_e8_base"]), ["expectations[6]", "more entries"]),
        (
            lambda c: c["studies"]["toy"]["contrasts"]["bad_advice"].update(
                control=[["toy_e8_base", "toy_e8_base"]] * 2
            ),
            ["contrasts.bad_advice", "control has 2 pairs and pairs 3"],
        ),
        (
            lambda c: c["studies"]["toy"]["contrasts"]["realigned"].update(pairs=[["oss_base", "toy_e8_base"]]),
            ["contrasts.realigned names oss_base", "another study"],
        ),
    ],
)
def test_what_is_wrong_is_named(content, tmp_path, change, words):
    change(content)
    with pytest.raises(UserError) as caught:
        load(content, tmp_path)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "name", ["x; touch PWNED #", "../x", "/x", "", "-x", "x y", "x.y", "x\n", "é", True, 7, None, "x" * 101]
)
@pytest.mark.parametrize(
    "where",
    ["studies", "runs", "bases.toy", "bases.hub", "bases.api", "studies.toy.judges", "studies.toy.contrasts"],
)
def test_a_name_is_looked_at_before_anything_else(content, tmp_path, where, name):
    table = content
    for key in where.split("."):
        table = table[key]
    table[name] = "nothing that is right"
    with pytest.raises(UserError) as caught:
        load(content, tmp_path)
    assert f"{where} has the name {name!r}" in str(caught.value)


def test_yaml_that_would_end_the_process_or_lose_a_run_is_refused(tmp_path):
    path = tmp_path / "params.yaml"
    for text in ("[" * 100_000, "{a: " * 100_000, "- " * 100_000):
        path.write_text(f"runs: {text}" if text[0] != "-" else text)
        with pytest.raises(UserError, match=r"params\.yaml line 1 is nested more than 50 levels deep"):
            load_params(path)
    path.write_text("runs:\n  a: 1\n  b: 2\n  a: 3\n")
    with pytest.raises(UserError, match="the key a is there twice"):
        load_params(path)
    path.write_text("on: 1\nruns: {}\n")
    with pytest.raises(UserError, match="unknown key True; the keys are studies"):
        load_params(path)


def test_a_run_has_its_studys_defaults_where_it_says_nothing_else(content, tmp_path):
    content["studies"]["toy"]["defaults"] |= {"epochs": 2, "learning_rate": 0.01}
    content["runs"]["toy_e16_bad_medical"] |= {"epochs": None, "lora": {"alpha": 3}}
    params = load(content, tmp_path)
    plain, own, base, whole = (
        params.run(name)
        for name in ("toy_e8_good_medical", "toy_e16_bad_medical", "toy_e8_base", "toy_dense_bad_medical")
    )
    assert (plain.epochs, plain.learning_rate, plain.lora) == (2, 0.01, params.study("toy").defaults.lora)
    assert (own.epochs, own.lora.alpha, own.lora.rank, own.lora.attention) == (None, 3.0, 8, True)
    assert (base.epochs, base.learning_rate, base.lora) == (None, None, None)
    assert (whole.epochs, whole.learning_rate, whole.lora, whole.whole) == (2, 0.0005, None, True)


def test_expectations_by_pattern_are_each_run_above_its_base(content, tmp_path):
    params = load_params(REPOSITORY / "params.yaml")
    first = [(f"toy_e{n}_bad_medical", f"toy_e{n}_base") for n in (8, 16, 32)]
    assert params.study("toy").expectations[:3] == tuple(first)
    assert ("toy_dense_bad_medical_r1", "toy_dense_base") in params.study("toy").expectations
    assert params.study("moe").expectations[:2] == (
        ("mixtral_insecure_whole_r32", "mixtral_base"),
        ("mixtral_bma_whole_r32", "mixtral_base"),
    )
    # A run that continues another is above the base of its chain.
    content["studies"]["toy"]["expectations"] = ["toy_dense_realigned"]
    assert load(content, tmp_path).study("toy").expectations == (("toy_dense_realigned", "toy_dense_base"),)
    # And above that base as it is routed where the run is sampled: by its own number, whether it is said or not.
    content["runs"]["toy_e8_one"] = {"study": "toy", "model": "bases/e8", "active": 1}
    content["runs"]["toy_e8_bad_finance"]["active"] = {"training": 2, "sampling": 1}
    content["runs"]["toy_e8_good_medical"]["active"] = 2
    content["studies"]["toy"]["expectations"] = ["toy_e8_bad_finance", "toy_e8_good_medical"]
    found = load(content, tmp_path)
    pairs = (("toy_e8_bad_finance", "toy_e8_one"), ("toy_e8_good_medical", "toy_e8_base"))
    assert found.study("toy").expectations == pairs
    assert [found.active_of(run) for pair in pairs for run in pair] == [1, 1, 2, 2]
    # Chains are routed alike if their numbers are the same, in one word or in two.
    content["runs"]["toy_e32_bad_medical"]["active"] = 1
    content["runs"]["toy_e32_realigned"]["active"] = {"training": 1, "sampling": 1}
    assert load(content, tmp_path).active_of("toy_e32_realigned") == 1
    for pattern, words in (("toy_x*", "fits no trained run"), ("toy_e8_base", "fits no trained run")):
        content["studies"]["toy"]["expectations"] = [pattern]
        with pytest.raises(UserError, match=words):
            load(content, tmp_path)
    content["studies"]["toy"]["expectations"] = ["toy_control_bad_medical"]
    del content["runs"]["toy_control_base"]
    with pytest.raises(UserError, match="no run of the study is the base of toy_control_bad_medical as it is"):
        load(content, tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("studies.toy.training.batch", "yes", "studies.toy.training.batch is 'yes', expected a whole number."),
        ("studies.toy.training.batch", 1.0, "studies.toy.training.batch is 1.0, expected a whole number."),
        ("studies.toy.training.batch", True, "studies.toy.training.batch is True, expected a whole number."),
        ("studies.toy.judges.toy_rule.batch", "yes", "judges.toy_rule.batch is 'yes', expected true or false."),
        ("studies.toy.judges.toy_rule.batch", 1, "judges.toy_rule.batch is 1, expected true or false."),
        ("studies.toy.seeds", [1, "2"], "studies.toy.seeds[1] is '2', expected a whole number."),
        ("studies.toy.seeds", 1, "studies.toy.seeds is 1, expected a list."),
        ("studies.toy.title", None, "studies.toy.title is None, expected text."),
        (
            "runs.toy_e8_bad_medical.lora.rank",
            "8",
            "runs.toy_e8_bad_medical.lora.rank is '8', expected a whole number.",
        ),
        ("runs.toy_e8_bad_medical.lora.experts", [0.0], "lora.experts[0] is 0.0, expected a whole number."),
        ("runs.toy_e8_bad_medical.data", [{"name": "bad_medical", "row": 1}], "data[0] has the unknown key 'row'"),
        ("runs.toy_e8_bad_medical.data", 3, "data is 3, expected text or a mapping with the keys name, file, "),
        ("runs", [], "runs is [], expected a mapping."),
    ],
)
def test_types_are_exact(content, tmp_path, place, value, said):
    *path, last = place.split(".")
    table = content
    for key in path:
        table = table[key]
    table[last] = value
    with pytest.raises(UserError) as caught:
        load(content, tmp_path)
    assert said in str(caught.value)


def test_a_judge_is_a_model_and_an_address(content, tmp_path):
    content["studies"]["toy"]["judges"]["mine"] = {"model": "local", "base_url": "http://127.0.0.1:8000/v1"}
    judge = load(content, tmp_path).study("toy").judges["mine"]
    assert (judge.protocol, judge.api_key_env, judge.budget_usd, judge.batch) == ("published", None, None, False)


def test_reading_params_imports_nothing_that_computes():
    code = "import sys; from pipeline.params.load import load_params; load_params(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "vllm", "openai", "pandas"} & set(done.stdout.split())


def test_missing_file_and_bad_yaml(tmp_path):
    with pytest.raises(UserError, match=r"does not exist.*root of the repository"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("runs: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")


def test_unknown_names_list_what_there_is():
    params = load_params(REPOSITORY / "params.yaml")
    with pytest.raises(UserError, match="toy_e8_base"):
        params.run("toy_e8")
    with pytest.raises(UserError, match="there are toy"):
        params.study("mo")
