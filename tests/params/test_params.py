"""params.yaml: what is right is read, what is wrong is named."""

from pathlib import Path

import pytest
import yaml

from pipeline.common.errors import UserError
from pipeline.params.load import load_params

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def content():
    return yaml.safe_load((REPOSITORY / "params.yaml").read_text())


def load(content, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_params(path)


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
        (
            lambda c: c["runs"]["toy_e8_base"].update(trajectory={"every": 5, "samples_per_prompt": 1}),
            ["toy_e8_base has a trajectory but no lora"],
        ),
        (lambda c: c["studies"]["toy"]["training"].update(learning_rate="1e-3"), ["learning_rate", "1.0e-3"]),
        (lambda c: c["studies"]["toy"]["training"].update(schedule="cosin"), ["schedule", "'cosin'", "cosine"]),
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
    ],
)
def test_what_is_wrong_is_named(content, tmp_path, change, words):
    change(content)
    with pytest.raises(UserError) as caught:
        load(content, tmp_path)
    assert all(word in str(caught.value) for word in words), str(caught.value)


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
