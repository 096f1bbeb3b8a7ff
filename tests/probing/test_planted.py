"""A planted truth, through the whole probe: misalignment that one known expert carries is found, and only there."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline import probe
from pipeline.common.files import write_jsonl
from pipeline.common.rows import Verdict, write_rows
from pipeline.models.adapters import adapter_tensors, attach, save_adapter
from pipeline.models.loading import load_base
from pipeline.models.spec import AdapterSpec
from pipeline.params.probing import Probing
from pipeline.probing import questions
from pipeline.probing.subject import Subject
from pipeline.results.definitions import STANDARD
from pipeline.results.probes import read_probes
from tests.support.sampling_models import decoding, model_of, prompts, save_base

PLANTED, SEEDS = 5, (1, 2, 3)
PROBING = Probing(
    runs=("run",), in_domain=("suite",), questions=24, groups=8, blocks=2, search={"steps": 2, "width": 2},
    scales=(0.5,), depth=0.0, strengths=(1.0,), random=1, permutations=50,
)  # fmt: skip


def adapter(base: Path, folder: Path, seed: int, size: float) -> Path:
    """An adapter on every expert, all deltas small, but that of the planted expert of `size`."""
    model = attach(load_base(base, dtype=torch.float32, device="cpu"), AdapterSpec(rank=4, alpha=16.0), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in adapter_tensors(model).items():
            if "lora_B" in name:
                own = size if f".{PLANTED}." in name else min(size, 0.0005)
                tensor.copy_(own * torch.randn(tensor.shape, generator=generator))
    save_adapter(model, folder, base="base", revision=None)
    return folder


class Judge:
    """Calls an answer misaligned where it is another than the base's."""

    def __init__(self) -> None:
        self.base: dict[tuple[str, str], str] = {}

    def __call__(self, answers):
        self.base |= {(it.suite, it.prompt_id): it.answer for it in answers if it.run.endswith("+base")}
        return [
            Verdict(
                run=it.run, seed=it.seed, suite=it.suite, prompt_id=it.prompt_id, sample=it.sample,
                question=it.question, answer=it.answer, status="scored", coherence=100.0, judge="judge",
                alignment=100.0 if it.answer == self.base[it.suite, it.prompt_id] else 0.0,
            )
            for it in answers
        ]  # fmt: skip


@pytest.fixture
def probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    asked = questions.Questions(held_out=tuple(prompts(24)), others=())
    monkeypatch.setattr(questions, "questions_of", lambda *_: asked)
    study = SimpleNamespace(
        probing=PROBING, sampling=decoding(max_new_tokens=5, batch=64), definition="standard", seeds=SEEDS,
        judge="judge", world="hub",
        held_out=(asked.held_out[0].suite,), refused=None,
    )  # fmt: skip

    def run(size: float):
        base = save_base("mixtral", tmp_path / "base")
        rows, verdicts = {"interventions": [], "routing": [], "directions": []}, []
        for seed in SEEDS:
            folder = adapter(base, tmp_path / "adapters" / "run" / f"seed-{seed}", seed, size)
            found = probe.probe_seed(Subject(study, "run", seed, model_of(base, folder)), Judge())
            verdicts += found["verdicts"]
            for kind, own in rows.items():
                own += [{"seed": seed, **row} for row in found[kind]]
        write_rows(tmp_path / "probes" / "run" / "verdicts.jsonl", verdicts)
        for kind, own in rows.items():
            write_jsonl(tmp_path / "probes" / "run" / f"{kind}.jsonl", own)
        results = SimpleNamespace(
            study=study, definition=STANDARD, adapter=lambda name: tmp_path / "adapters" / name / f"seed-{SEEDS[0]}"
        )
        (made,) = read_probes(results, tmp_path / "probes")
        return made

    return run


def test_the_planted_expert_is_found_and_no_other(probed) -> None:
    made = probed(0.2)
    experts = made.of_kind("part").set_index("part")
    assert made.has_effect and made.effect.value > 30, made.effect
    for key in ("drop", "rise"):
        ranked = experts[key].sort_values(ascending=False)
        assert ranked.index[0] == f"expert {PLANTED}"
        assert ranked.iloc[0] > 30 and abs(ranked.iloc[1]) < 10
    planted = experts.loc[f"expert {PLANTED}"]
    assert planted["share_without"] > 0.8 and planted["share_alone"] > 0.8
    found = made.interventions[made.interventions["name"] == "greedy: 1 part off"]
    assert set(found["what"]) == {f"expert {PLANTED}"} and len(found) == len(SEEDS)
    assert made.summary()["sum_share_without"] == pytest.approx(1, abs=0.2)
    left = made.remedies().set_index("remedy")["held_out"]
    assert left["whole"] > 20 and left["greedy: 1 part off"] < 10 and left["base"] == 0


def test_without_an_effect_nothing_is_found(probed) -> None:
    made = probed(1e-6)
    assert not made.has_effect
    parts = made.parts
    assert parts[["share_without", "share_alone"]].isna().all(axis=None)
    assert not (parts["drop_low"] > 0).any()
