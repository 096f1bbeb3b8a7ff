"""Runs that continue other runs: what params.yaml may say, what is trained, and what DVC runs again."""

from pathlib import Path

import pytest
import torch

from pipeline.common.errors import UserError
from pipeline.models.adapters import adapter_tensors, continue_adapter, load_adapter, save_adapter, trainable_manifest
from pipeline.models.spec import AdapterSpec
from pipeline.params.load import load_params
from tests.support.checkout import REPOSITORY
from tests.support.quick_yaml import safe_dump, safe_load
from tests.support.recorded import changed, dvc, recorded, toy_study, write_output
from tests.support.tiny_models import adapted, tiny_model, tokens, train

FIRST, SECOND, THIRD, OTHER = "toy_e8_bad_medical", "second", "third", "toy_e16_bad_medical"


@pytest.fixture
def content():
    """The repository's parameters with a chain of three links."""
    params = safe_load((REPOSITORY / "params.yaml").read_text())
    runs = params["runs"]
    runs[SECOND] = runs[FIRST] | {"model": f"toy/adapters/{FIRST}", "data": "good_medical"}
    runs[THIRD] = runs[FIRST] | {"model": f"toy/adapters/{SECOND}", "data": "bad_finance"}
    return params


def load(content, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(safe_dump(content))
    return load_params(path)


def test_a_chain_leads_back_to_its_base(content, tmp_path):
    params = load(content, tmp_path)
    assert params.chain(THIRD) == (FIRST, SECOND, THIRD)
    assert params.base_of(THIRD) == params.base_of(FIRST) == "e8"
    assert params.runs[FIRST].continues is None
    assert params.bases_of("toy").count("e8") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r[SECOND].update(model="toy/adapters/frist"), ["no run 'frist'", FIRST]),
        (lambda r: r[SECOND].update(model="e8"), ["runs.second.model is 'e8'", "bases/NAME", "toy/adapters/RUN"]),
        (lambda r: r[SECOND].update(model="moe/adapters/oss_bma_r8"), ["runs.second.model", "the same study"]),
        (lambda r: r[SECOND].update(model="toy/adapters/oss_bma_r8"), ["oss_bma_r8 is a run of study moe"]),
        (lambda r: r[SECOND].update(model="toy/adapters/toy_e8_base"), ["toy_e8_base trains nothing"]),
        (lambda r: r[FIRST].update(model=f"toy/adapters/{THIRD}"), ["continues itself", SECOND, THIRD]),
        (lambda r: r[SECOND].update(model=f"toy/adapters/{SECOND}"), ["continues itself: second from second"]),
        (lambda r: r[SECOND].update(lora=r[FIRST]["lora"] | {"rank": 4}), ["second.lora.rank is 4", "has 8"]),
        (lambda r: r[SECOND].update(lora=r[FIRST]["lora"] | {"experts": [0]}), ["second.lora.experts", "'all'"]),
        (lambda r: r[SECOND].update(lora=r[FIRST]["lora"] | {"layers": [0]}), ["second.lora.layers", "'all'"]),
        (lambda r: r[SECOND].update(lora=r[FIRST]["lora"] | {"projections": ["up"]}), ["second.lora.projections"]),
        (lambda r: r[SECOND].update(lora=None), [f"{FIRST} trains an adapter and {SECOND} every parameter"]),
        (lambda r: r[FIRST].update(lora=None), [f"{SECOND} trains an adapter and {FIRST} every parameter"]),
        (lambda r: (r[SECOND].pop("data"), r[SECOND].pop("lora")), ["second trains nothing"]),
    ],
)
def test_a_chain_that_cannot_be_is_named(content, tmp_path, change, words):
    change(content["runs"])
    with pytest.raises(UserError) as caught:
        load(content, tmp_path)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt_oss"])
def test_the_same_adapter_is_trained_further(family: str, tmp_path: Path) -> None:
    spec = AdapterSpec(rank=2, alpha=8, router="frozen" if family == "llama" else "free", attention=True)
    first = train(adapted(family, "fused", spec))
    save_adapter(first, tmp_path / "first", base="b", revision=None)
    second = continue_adapter(tiny_model(family, "fused"), tmp_path / "first")
    before = adapter_tensors(first)
    assert trainable_manifest(second) == trainable_manifest(first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter_tensors(second).items())
    assert sum(p.numel() for p in second.parameters() if p.requires_grad) == sum(t.numel() for t in before.values())
    train(second)
    assert not torch.equal(second(tokens()).logits, first(tokens()).logits)
    save_adapter(second, tmp_path / "second", base="b", revision=None)
    alone = load_adapter(tiny_model(family, "fused"), tmp_path / "second")
    assert torch.equal(alone(tokens()).logits, second(tokens()).logits), "the result needs more than its base"


def test_a_changed_first_link_runs_its_descendants_again_and_nothing_else(content, tmp_path):
    """Outputs are written here, not computed: what DVC depends on is what is looked at."""
    study = toy_study((FIRST, OTHER), ("e8", "e16"))
    study["runs"] = {name: content["runs"][name] for name in (THIRD, FIRST, SECOND, OTHER)}
    study["studies"]["toy"] |= {"expectations": [[FIRST, SECOND]], "contrasts": {}}
    load(study, tmp_path)
    recorded(tmp_path, study)
    assert changed(tmp_path) == {}

    study["runs"][FIRST]["data"] = "bad_finance"
    load(study, tmp_path)
    found = changed(tmp_path)
    assert set(found) == {f"train@{FIRST}", f"sample@{FIRST}", "aggregate@toy"}, (
        "the aggregate reads every run's parameters"
    )

    # Each link that comes out changed makes the next one run, and only that one.
    for link, after in ((FIRST, SECOND), (SECOND, THIRD)):
        write_output(tmp_path, f"toy/adapters/{link}/adapter", "trained anew")
        dvc(tmp_path, "commit", "--force", f"train@{link}")
        stages = {f"sample@{link}", f"train@{after}", f"sample@{after}"}
        found = changed(tmp_path)
        assert stages <= set(found), found
        assert not any(OTHER in stage for stage in found)
        assert (f"train@{THIRD}" in found) == (after == THIRD)
    order = dvc(tmp_path, "repro", "--dry", "--force", f"judge@{THIRD}")
    places = [order.index(f"'train@{link}'") for link in (FIRST, SECOND, THIRD)]
    assert places == sorted(places) and f"train@{OTHER}" not in order
