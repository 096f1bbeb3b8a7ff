"""The checkpoint that an engine serves computes what the fine-tuned model computed; the canary tells if not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.common.errors import UserError
from pipeline.common.files import read_json, write_json
from pipeline.models.adapters import load_adapter
from pipeline.models.loading import load_frozen
from pipeline.sampling import canary
from pipeline.sampling.merged import checkpoint_folder, remove_checkpoint, write_checkpoint
from pipeline.sampling.vllm import check_memory
from tests.support.sampling_models import model_of, save_base, save_random_adapter
from tests.support.tiny_models import MOE, tokens

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("family", MOE)
@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapter"])
def test_a_model_trained_on_nf4_is_served_on_the_weights_it_was_trained_on(
    family: str, adapted: bool, tmp_path: Path
) -> None:
    base = save_base(family, tmp_path / "base")
    adapter = save_random_adapter(base, tmp_path / "adapter") if adapted else None
    model = model_of(base, adapter, "nf4")
    write_checkpoint(model, checkpoint_folder(model))
    plain: Any = AutoModelForCausalLM.from_pretrained(checkpoint_folder(model), dtype=torch.bfloat16).eval()
    frozen = load_frozen(model.base, "nf4", CPU)
    reference = load_adapter(frozen, adapter) if adapter else frozen
    unrounded: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        expected, engine, other = (it(tokens()).logits.float() for it in (reference, plain, unrounded))
    # The same bfloat16 products, but for the adapter's, which are summed into the weights.
    error, rounded_away = ((it - expected).abs().mean() / expected.std() for it in (engine, other))
    # Sums of weights and adapter are stored in 16 bits; the factors were kept apart in training.
    assert error < 0.05 if adapted else error == 0
    # How much that is depends on the architecture: 0.13 (Phi, eight experts) to 0.34 (gpt-oss).
    assert rounded_away > 0.1


def test_a_base_that_can_be_served_as_it_is_is_not_copied(tmp_path: Path) -> None:
    base = save_base("mixtral", tmp_path / "base")
    model = model_of(base, None)
    assert checkpoint_folder(model) == base
    write_checkpoint(model, base)
    remove_checkpoint(base)
    assert (base / "config.json").exists()
    config = read_json(base / "config.json")
    write_json(base / "config.json", {**config, "quantization_config": {"quant_method": "mxfp4"}})
    assert checkpoint_folder(model) != base


def test_a_half_written_checkpoint_is_written_again_and_a_whole_one_is_not(tmp_path: Path) -> None:
    base = save_base("mixtral", tmp_path / "base")
    model = model_of(base, save_random_adapter(base, tmp_path / "adapter"))
    folder = checkpoint_folder(model)
    write_checkpoint(model, folder)
    index = folder / "model.safetensors.index.json"
    first = index.stat().st_mtime_ns
    write_checkpoint(model, folder)
    assert index.stat().st_mtime_ns == first
    index.unlink()
    write_checkpoint(model, folder)
    assert index.exists()
    remove_checkpoint(folder)
    assert not folder.exists() and base.exists()


def test_weights_that_do_not_fit_are_refused_with_the_numbers(tmp_path: Path) -> None:
    base = save_base("mixtral", tmp_path / "base")
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    check_memory(base, 2, size)
    with pytest.raises(UserError, match=r"tensor_parallel to 2 or more \(what divides 2 heads\)"):
        check_memory(base, 1, size)
    # Three would do by size, and 32 heads do not divide by three.
    config = read_json(base / "config.json")
    write_json(base / "config.json", {**config, "num_attention_heads": 32})
    with pytest.raises(UserError, match=r"tensor_parallel to 4 or more \(what divides 32 heads\)"):
        check_memory(base, 1, int(size / 2.5))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> canary.Reference:
    folder = tmp_path_factory.mktemp("canary")
    base = save_base("mixtral", folder / "base")
    adapter = save_random_adapter(base, folder / "adapter")
    return canary.reference(model_of(base, adapter), tokens(5, 9).tolist(), pad=0)


def test_the_canary_lets_the_adapter_pass(answers: canary.Reference) -> None:
    said = canary.check(answers, [trace.tokens for trace in answers.trained], "float32")
    assert "differ from transformers' in 0" in said and "warning" not in said


def test_the_canary_stops_an_engine_that_ignores_the_adapter(answers: canary.Reference) -> None:
    with pytest.raises(UserError, match=r"does not serve the model.*transformers"):
        canary.check(answers, [trace.tokens for trace in answers.base or []], "float32")


def test_an_adapter_that_changes_nothing_is_a_warning_and_no_reason_to_stop(answers: canary.Reference) -> None:
    same = canary.Reference(base=answers.trained, trained=answers.trained)
    said = canary.check(same, [trace.tokens for trace in answers.trained], "float32")
    assert "changes 0 of them" in said and "warning: so little changes that an engine which ignores" in said


def test_a_base_is_compared_too(answers: canary.Reference) -> None:
    assert answers.base is not None
    base = canary.Reference(base=None, trained=answers.base)
    assert "adapter" not in canary.check(base, [trace.tokens for trace in answers.base], "float32")
    with pytest.raises(UserError, match="does not serve the model"):
        canary.check(base, [trace.tokens for trace in answers.trained], "float32")


def test_a_near_tie_is_no_difference(answers: canary.Reference) -> None:
    engine = [list(trace.tokens) for trace in answers.trained]
    second, gap = runner_up(answers.trained[0], place=3)
    engine[0][3:] = [second] * len(engine[0][3:])
    found = canary.parting(answers.trained[0], engine[0])
    assert found is not None and found.place == 3 and found.nats == pytest.approx(gap)
    tolerance = canary.TOLERANCE["float32"]
    if gap > tolerance:
        with pytest.raises(UserError, match="prompt 1 at token 3"):
            canary.check(answers, engine, "float32")
    ties = [dict.fromkeys(step, 0.0) for step in answers.trained[0].likeliest]
    tied = canary.Trace(tokens=answers.trained[0].tokens, likeliest=ties)
    canary.check(canary.Reference(base=answers.base, trained=[tied, *answers.trained[1:]]), engine, "float32")


def runner_up(trace: canary.Trace, place: int) -> tuple[int, float]:
    """The second likeliest token at a place, and by how much it is less likely."""
    (_, best), (second, value) = sorted(trace.likeliest[place].items(), key=lambda item: -item[1])[:2]
    return second, best - value


def test_canary_prompts_are_spread_over_the_suites() -> None:
    prompts = [[number] for number in range(100)]
    chosen = [prompt[0] for prompt in canary.choose_prompts(prompts)]
    assert len(chosen) == canary.PROMPTS and chosen == sorted(set(chosen)) and max(chosen) >= 90
    assert canary.choose_prompts(prompts[:3]) == prompts[:3]
