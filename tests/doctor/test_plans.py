"""Doctor, gate and estimate plan what the stages plan: the same numbers go in, and the card's own rates."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline import sample
from pipeline.common.errors import UserError
from pipeline.common.machine import Gpu
from pipeline.doctor import plans
from pipeline.doctor import study as doctor_study
from pipeline.doctor.asked import asked_of
from pipeline.doctor.bases import steps_of
from pipeline.doctor.narrowed import only
from pipeline.doctor.plans import plan_runs
from pipeline.models.bases import Base
from pipeline.models.cards import CARDS, SLOW, rates_of
from pipeline.models.known import KNOWN, config_of
from pipeline.models.sizes import HOST_SHARE
from pipeline.params.load import load_params
from pipeline.params.schema import Params
from pipeline.sampling import huggingface
from pipeline.sampling.plan import plan_sampling
from tests.support.data_files import REPOSITORY, upstream

RUN, HOST = "mixtral_insecure_E3", 64 * 2**30
CARD = CARDS["a6000"]


@pytest.fixture(scope="module")
def params() -> Params:
    """The repository's own; study moe with a suite that the repository has, and a tag on the run's."""
    loaded = load_params(REPOSITORY / "params.yaml")
    study = loaded.study("moe").model_copy(update={"suites": ("capability",)})
    run = loaded.run(RUN).model_copy(update={"tags": ("|ALPHA|",)})
    studies, runs = {**loaded.studies, "moe": study}, {**loaded.runs, RUN: run}
    return loaded.model_copy(update={"studies": studies, "runs": runs})


def asking(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[dict[str, Any]]:
    """What a module asks `plan_sampling`, which answers nothing."""
    seen: list[dict[str, Any]] = []

    def ask(config: Any, lora: Any, **values: Any) -> None:
        seen.append({"model": config.model_type, "lora": lora, **values})
        raise UserError("seen")

    monkeypatch.setattr(module, "plan_sampling", ask)
    return seen


def test_the_stage_and_doctor_plan_with_the_same_numbers(
    params: Params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tests.support.sampling_models import tokenizer_of

    tokenizer_of(["What"]).save_pretrained(tmp_path)
    hub = params.hub_base("mixtral")
    (tmp_path / "config.json").write_text(json.dumps(KNOWN[hub.repository]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample, "load_params", lambda: params)
    monkeypatch.setattr(sample, "open_base", lambda *_: Base(path=tmp_path, name="b", revision=None, hashes={}))
    monkeypatch.setattr(huggingface, "machine_bytes", lambda: (CARD.memory, int(HOST_SHARE * HOST)))
    monkeypatch.setattr(huggingface, "gpu_rates", lambda: rates_of("NVIDIA RTX A6000"))
    staged, doctors = asking(monkeypatch, huggingface), asking(monkeypatch, plans)
    with pytest.raises(UserError, match="seen"):
        sample.main(argparse.Namespace(run=RUN))
    alone = params.model_copy(update={"runs": {RUN: params.run(RUN)}})
    list(plan_runs(alone, "moe", gpu_bytes=CARD.memory, host_bytes=HOST, rates=CARD.rates))
    (stage,), (doctor,) = staged, doctors
    # Without the base's tokenizer, its tokens are bounded by bytes.
    assert 0 < stage.pop("prompt_tokens") <= doctor.pop("prompt_tokens") < 200
    assert stage == doctor and stage["requests"] == 2 * 40


def test_a_suite_that_is_not_here_is_planned_as_if_it_were(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    study = load_params(REPOSITORY / "params.yaml").study("moe")
    asked = asked_of(study, study.suites, study.seeds[0], study.sampling.samples_per_prompt)
    assert asked.answers == 1257
    # The longest prompt has 1962 bytes, with the system prompt 2025; its tokens are 545, 412 and 469.
    assert asked.longest == 2025 and 545 < asked.longest_tokens < 800
    assert asked.times(0).answers == 0 and (asked + asked.times(2)).size == 3 * asked.size
    (tmp_path / "data").symlink_to(upstream())
    real = asked_of(study, study.suites, study.seeds[0], study.sampling.samples_per_prompt)
    assert (real.answers, real.longest) == (asked.answers, asked.longest)
    assert real.size == pytest.approx(asked.size, rel=0.01)


def test_steps_of_sets_that_are_not_here_are_those_of_their_known_rows(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_params(REPOSITORY / "params.yaml")
    runs = {name: loaded.run(name) for name in ("llama31_insecure_optimism", "gpt_4o_tags", "qwen25_14b_medical")}
    found = [steps_of(loaded.study(run.study), run, seed=0) for run in runs.values()]
    # Four epochs of 1600 rows, 8 at a time; 3000 rows and 3000; 9 tenths of 7049, 16 at a time.
    assert found == [800, 750, 397]


def test_several_cards_are_told_what_they_buy(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor_study, "memory_bytes", lambda: HOST)
    loaded = only(load_params(REPOSITORY / "params.yaml"), "moe", ["oss_insecure_r8"])
    card = Gpu("NVIDIA RTX A6000", 8.6, CARD.memory, "580.1")
    assert list(doctor_study.check_more_cards(loaded, "moe", (card,))) == []
    (check,) = doctor_study.check_more_cards(loaded, "moe", (card, card))
    low = [float(part) for part in re.findall(r"([\d.]+) to [\d.]+ h", check.found)]
    one, apart, together = low
    # A study of one run cannot be divided; training alone is, by devices.
    assert check.found.startswith("2. By arithmetic") and apart == pytest.approx(one / 2, abs=0.06)
    assert apart < together < one


def test_a_plan_is_weighed_by_the_cards_own_rates() -> None:
    """On an A6000 13 layers on their way hide behind memory's traffic, and twice as many answers fit."""
    params = load_params(REPOSITORY / "params.yaml")
    hub = params.hub_base("mixtral")
    config, lora = config_of(hub.repository, hub.revision), params.run("mixtral_insecure_whole_r32").lora
    sizes: dict[str, Any] = {"gpu_bytes": CARD.memory, "host_bytes": int(HOST_SHARE * HOST)}
    batches = [
        plan_sampling(
            config, lora, precision="nf4", new_tokens=600, requests=1257, prompt_tokens=755, rates=rates, **sizes
        ).batch
        for rates in (SLOW, CARD.rates)
    ]
    assert batches == [64, 128]
    assert rates_of("a card of next year") == SLOW and rates_of("NVIDIA A100-SXM4-80GB") == CARDS["a100"].rates
