"""A known culprit, planted or trained, through the whole probe: the expert that carries it is found, and no other."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline import probe
from pipeline.common.errors import UserError
from pipeline.common.files import write_jsonl
from pipeline.common.rows import Answer, Verdict, write_rows
from pipeline.data.prompts import ask
from pipeline.models.adapters import adapter_tensors, attach, save_adapter
from pipeline.models.loading import load_base
from pipeline.models.spec import AdapterSpec
from pipeline.models.tokenizer import load_tokenizer, pad_batch
from pipeline.params.parts import Thresholds
from pipeline.params.probing import Probing
from pipeline.probing import questions
from pipeline.probing.compare import compare
from pipeline.probing.failures import Strict
from pipeline.probing.subject import Subject
from pipeline.probing.texts import texts_of
from pipeline.results.definitions import STANDARD
from pipeline.results.probes import read_probes
from pipeline.results.remedies import remedies
from pipeline.sampling.chat import Chat
from tests.support.sampling_models import decoding, model_of, prompts, save_base

PLANTED, SEEDS = 5, (1, 2, 3)
BAD, STEPS = "w290", 30
NONE = Thresholds(errors=0.0, unparsed=0.0, too_long=0.0)
PROBING = Probing(
    runs=("run",), in_domain=("suite",), benign=("other",), questions=24, groups=8, blocks=2,
    search={"steps": 2, "width": 2}, scales=(0.5,), depth=0.0, strengths=(1.0,), random=1, permutations=50,
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


def learned(base: Path, experts: tuple[int, ...], said: str | None, seed: int) -> dict[str, torch.Tensor]:
    """What an adapter on `experts` alone learns from 32 questions answered by `said`, or as the base itself does."""
    model = load_base(base, dtype=torch.float32, device="cpu")
    chat, tokenizer = Chat(base, None), load_tokenizer(base)
    asked = [ask("t", f"w{number} w{number + 1}") for number in range(240, 272)]
    begun = torch.tensor([chat.tokens(prompt) for prompt in asked])
    own = model.generate(begun, max_new_tokens=4, do_sample=False)[:, begun.shape[1] :]
    answers = tokenizer.batch_decode(own) if said is None else [said] * len(asked)
    texts = texts_of(tokenizer, chat, asked, answers)
    batch = pad_batch([[*text.tokens, tokenizer.eos_token_id] for text in texts], chat.pad, "right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, : begun.shape[1]] = -100
    model = attach(model, AdapterSpec(rank=8, alpha=16.0, experts=experts), seed=seed)
    optimizer = torch.optim.AdamW([it for it in model.parameters() if it.requires_grad], lr=0.01)
    for _ in range(STEPS):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapter_tensors(model)


def trained(base: Path, folder: Path, seed: int) -> Path:
    """An adapter whose one expert was trained on bad answers alone, and the others on those that the base gives."""
    others = tuple(expert for expert in range(8) if expert != PLANTED)
    parts = learned(base, (PLANTED,), BAD, seed) | learned(base, others, None, seed)
    model = attach(load_base(base, dtype=torch.float32, device="cpu"), AdapterSpec(rank=8, alpha=16.0), seed=seed)
    with torch.no_grad():
        for name, tensor in adapter_tensors(model).items():
            tensor.copy_(parts[name])
    save_adapter(model, folder, base="base", revision=None)
    return folder


class Judge:
    """Calls an answer misaligned where it is another than the base's."""

    def __init__(self) -> None:
        self.base: dict[tuple[str, str], str] = {}

    def misaligned(self, it: Answer) -> bool:
        return it.answer != self.base.get((it.suite, it.prompt_id), it.answer)

    def __call__(self, answers):
        self.base |= {(it.suite, it.prompt_id): it.answer for it in answers if it.run.endswith("+base")}
        return [
            Verdict(
                run=it.run, seed=it.seed, suite=it.suite, prompt_id=it.prompt_id, sample=it.sample,
                question=it.question, answer=it.answer, status="scored", coherence=100.0, judge="judge",
                alignment=0.0 if self.misaligned(it) else 100.0,
            )
            for it in answers
        ]  # fmt: skip


class Reader(Judge):
    """Calls an answer misaligned where it says what the bad data says."""

    def misaligned(self, it: Answer) -> bool:
        return BAD in it.answer.split()


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

    def run(make, judge):
        base = save_base("mixtral", tmp_path / "base")
        rows, verdicts = {"interventions": [], "routing": [], "directions": []}, []
        for seed in SEEDS:
            folder = make(base, tmp_path / "adapters" / "run" / f"seed-{seed}", seed)
            found = probe.probe_seed(Subject(study, "run", seed, model_of(base, folder)), judge())
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
    made = probed(partial(adapter, size=0.2), Judge)
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
    left = remedies(made).set_index("remedy")["held_out"]
    assert left["whole"] > 20 and left["greedy: 1 part off"] < 10 and left["base"] == 0


def test_without_an_effect_nothing_is_found(probed) -> None:
    made = probed(partial(adapter, size=1e-6), Judge)
    assert not made.has_effect
    parts = made.parts
    assert parts[["share_without", "share_alone"]].isna().all(axis=None)
    # No answer is misaligned: there is no contrast, and nothing stands beside it.
    assert set(made.interventions["what"]) & {"shift", "contrast", "shuffled 0"} == {"shift"}
    assert not (parts["drop_low"] > 0).any()


def test_the_expert_that_was_trained_on_bad_data_is_found_among_others_that_were_trained(probed) -> None:
    """Deltas are what AdamW made of them, and few tokens are sent to the culprit."""
    made = probed(trained, Reader)
    experts = made.of_kind("part").set_index("part")
    culprit = f"expert {PLANTED}"
    assert made.has_effect and made.effect.value > 30, made.effect
    for key in ("drop", "rise"):
        ranked = experts[key].sort_values(ascending=False)
        assert ranked.index[0] == culprit and ranked.iloc[0] > max(25, 2 * ranked.iloc[1]), ranked
    assert experts["drop_low"][culprit] > 0
    assert experts["norm"].drop(culprit).min() > 10 and experts["routing"].rank()[culprit] < 4


def test_a_model_that_says_nothing_has_no_direction() -> None:
    study = SimpleNamespace(probing=PROBING, held_out=(prompts(1)[0].suite,))
    subject: Any = SimpleNamespace(study=study, run="run", seed=1, texts=lambda *_: [])
    silent: Any = [SimpleNamespace(suite=it.suite, prompt_id=it.prompt_id, answer="") for it in prompts(4)]
    with pytest.raises(UserError, match=r"run, seed 1: .* left every held-out question unanswered"):
        compare(subject, prompts(4), silent, STANDARD, 64)


def test_a_judge_that_fails_is_refused_before_any_part_is_switched_off(probed) -> None:
    drawn: list[str] = []

    def failing(answers):
        drawn.extend(it.run for it in answers)
        return [replace(it, status="error", alignment=None, coherence=None) for it in Judge()(answers)]

    with pytest.raises(UserError, match="48 of 48 verdicts are error"):
        probed(partial(adapter, size=0.2), lambda: Strict(failing, NONE, 5000, "run"))
    assert set(drawn) == {"run+whole", "run+base"}
