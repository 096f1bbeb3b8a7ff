"""Interventions are exact: on three architectures, in 4 and in 16 bits, weights on the device and streamed to it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.common.errors import UserError
from pipeline.models.adapters import fix_factors, load_adapter
from pipeline.models.loading import ALL, load_frozen
from pipeline.models.spec import AdapterSpec
from pipeline.probing.interventions import ATTENTION, Intervention, Shift, applied, units_of
from pipeline.probing.knockout import blocks_of, first_round, parts_of
from pipeline.probing.reading import Text, read
from pipeline.probing.subject import Subject
from tests.support.sampling_models import model_of, save_base, save_random_adapter
from tests.support.tiny_models import adapted, tokens

# Every form that is loaded: in host memory are layers of quantised experts, and of dense models in 16 bits.
HELD = (("bfloat16", 0), ("nf4", 0), ("nf4", ALL))
FORMS = [(family, *held) for family in ("mixtral", "qwen3_moe", "gpt_oss") for held in HELD]
FORMS += [("llama", "bfloat16", 0), ("llama", "bfloat16", ALL)]


def logits(model):
    with torch.inference_mode():
        return model(tokens()).logits.clone()


def off(*units):
    return Intervention(name="test", kind="test", off=frozenset(units))


@pytest.mark.parametrize(("family", "precision", "offloaded"), FORMS)
def test_interventions_are_exact(family, precision, offloaded, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = save_base(family, tmp_path / "base")
    described = model_of(base, save_random_adapter(base, tmp_path / "adapter"), precision)
    model = load_frozen(described.base, precision, torch.device("cpu"), offloaded=offloaded)
    bare = logits(model)
    model = load_adapter(model, described.adapter, base=described.base)
    fix_factors(model)
    whole = logits(model)
    units = units_of(model)
    experts = [part for _, part in units if isinstance(part, int)]
    assert sorted(set(experts)) == ([] if family == "llama" else [0, 3])
    with applied(model, off(*units)):
        assert torch.equal(logits(model), bare), "every unit off is the base, bit for bit"
    with applied(model, off()):
        assert torch.equal(logits(model), whole), "nothing off is the run, bit for bit"
    seen = {}
    for part, own in parts_of(units, 8).items():
        for name, change in (("without", off(*own)), ("only", off(*(set(units) - own)))):
            with applied(model, change):
                seen[f"{name} {part}"] = logits(model)
    assert all(not torch.equal(one, other) for one in seen.values() for other in (bare, whole))
    for scale in (0.5, 1.0):
        with applied(model, Intervention(name="test", kind="test", scale=scale)):
            assert torch.equal(logits(model), whole) == (scale == 1.0)
    assert torch.equal(logits(model), whole), "an intervention leaves nothing behind"
    with pytest.raises(ZeroDivisionError), applied(model, off(*units)):
        raise ZeroDivisionError
    assert torch.equal(logits(model), whole), "nor does one that fails"


@pytest.mark.parametrize("precision", ["bfloat16", "nf4"])
def test_one_expert_kept_alone_is_an_adapter_of_that_expert_alone(precision, tmp_path: Path, monkeypatch) -> None:
    """The same bits as from an adapter whose other deltas were never there."""
    from safetensors.torch import load_file, save_file

    monkeypatch.chdir(tmp_path)
    base = save_base("qwen3_moe", tmp_path / "base")
    described = model_of(base, save_random_adapter(base, tmp_path / "adapter"), precision)
    alone = tmp_path / "alone"
    alone.mkdir()
    kept = {
        name: it for name, it in load_file(described.adapter / "adapter_model.safetensors").items() if ".3." in name
    }
    save_file(kept, alone / "adapter_model.safetensors")
    (alone / "adapter_config.json").write_bytes((described.adapter / "adapter_config.json").read_bytes())
    found = []
    for adapter, removed in ((described.adapter, {0, ATTENTION}), (alone, set())):
        model = load_frozen(described.base, precision, torch.device("cpu"))
        model = load_adapter(model, adapter, base=described.base)
        fix_factors(model)
        with applied(model, off(*(unit for unit in units_of(model) if unit[1] in removed))):
            found.append(logits(model))
    assert torch.equal(*found)


def test_shifts_move_the_stream_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = save_base("mixtral", tmp_path / "base")
    described = model_of(base, save_random_adapter(base, tmp_path / "adapter"))
    model = load_adapter(load_frozen(described.base, "float32", torch.device("cpu")), described.adapter)
    texts = [Text(prompt=(1, 2, 3), answer=(4, 5)), Text(prompt=(6,), answer=(7, 8, 9))]
    vector = torch.randn(64, generator=torch.Generator().manual_seed(1))

    def streams(*shifts: Shift) -> torch.Tensor:
        return read(model, texts, Intervention(name="test", kind="test", shifts=shifts), 64, 0).streams

    before = streams()
    added = streams(Shift(layer=0, how="add", vector=vector))
    torch.testing.assert_close(added[:, 0], before[:, 0] + vector)
    assert not torch.allclose(added[:, 1], before[:, 1])
    out = streams(Shift(layer=1, how="project out", vector=3 * vector))
    assert torch.equal(out[:, 0], before[:, 0])
    assert ((out[:, 1] @ vector).abs() < 1e-4).all() and ((before[:, 1] @ vector).abs() > 1e-2).any()
    # Alone or in one padded batch, a text reads the same.
    alone = read(model, texts[:1], Intervention(name="test", kind="test"), 64, 0)
    torch.testing.assert_close(alone.streams, before[:1])
    assert alone.chosen[0].shape == (2, 5, 2)


def test_parts_cover_every_unit_once() -> None:
    units = [(layer, part) for layer in range(5) for part in (*range(128), ATTENTION)]
    for pieces in (parts_of(units, 16), blocks_of(units, 2), parts_of(units, 500)):
        assert sorted(map(str, units)) == sorted(str(unit) for own in pieces.values() for unit in own)
    assert list(parts_of(units, 16))[:2] == ["experts 0-7", "experts 8-15"] and list(blocks_of(units, 2)) == [
        "layers 0-1",
        "layers 2-4",
    ]
    names = [it.name for it in first_round(units, 16, 2)]
    assert len(names) == len(set(names)) == 2 + 2 * 17 + 2 * 2


def test_what_probes_cannot_switch_off_is_said_with_the_runs_name() -> None:
    """Experts one by one, which no stage loads."""
    model = adapted("mixtral", "unfused", AdapterSpec(rank=2, alpha=4.0))
    subject = Subject.__new__(Subject)
    subject.run = "my_run"
    subject._backend, subject.model = SimpleNamespace(load=lambda _: model), None
    with pytest.raises(UserError, match=r"params.yaml: probing\.runs of a study has my_run, .*experts\.0"):
        subject.units  # noqa: B018
