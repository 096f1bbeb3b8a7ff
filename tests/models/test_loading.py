"""Checkpoints are streamed into models whose experts are really in 4 bits, equally on both paths."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    MixtralConfig,
    SiglipVisionConfig,
)
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from pipeline.common.errors import UserError
from pipeline.models.adapters import adapter_tensors, attach, load_adapter, save_adapter
from pipeline.models.experts.stacks import PackedExperts, release_buffers
from pipeline.models.families.registry import anatomy_of
from pipeline.models.loading import ALL, load_base
from pipeline.models.merge import merge_adapter
from pipeline.models.report import assert_quantised, assert_routing, load_report
from pipeline.models.spec import AdapterSpec
from tests.support.tiny_models import CONFIGS, MOE, tiny_model, tokens


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sharded checkpoint a family, written by transformers."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for family in CONFIGS:
        tiny_model(family).save_pretrained(folder / family, max_shard_size="100KB")
    return {family: folder / family for family in CONFIGS}


def load(folder: Path, experts: Any = "fused", **options: Any) -> Any:
    return load_base(folder, experts=experts, dtype=torch.float32, device="cpu", **options)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("experts", ["fused", "unfused"])
def test_a_checkpoint_loads_to_the_model_that_was_saved(
    family: str, experts: str, checkpoints: dict[str, Path]
) -> None:
    assert len(list(checkpoints[family].glob("*.safetensors"))) > 1
    loaded = load(checkpoints[family], experts)
    expected = tiny_model(family)(tokens()).logits
    torch.testing.assert_close(loaded(tokens()).logits, expected, rtol=0, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("family", MOE)
def test_a_token_is_routed_to_as_many_experts_as_are_asked_for(family: str, checkpoints: dict[str, Path]) -> None:
    folder, anatomy = checkpoints[family], anatomy_of(CONFIGS[family]())
    own = load(folder)(tokens()).logits
    assert torch.equal(load(folder, active=anatomy.active)(tokens()).logits, own)
    if anatomy.family.fixed_router is not None:
        with pytest.raises(UserError, match="active is 1, but phimoe routes by SparseMixer, which takes two"):
            load(folder, active=1)
        return
    for active, experts in ((1, "fused"), (anatomy.active + 1, "fused"), (anatomy.experts, "unfused")):
        model, seen = load(folder, experts, active=active), []
        assert anatomy_of(model.config).active == active
        for layer in anatomy.moe_layers:
            model.get_submodule(anatomy.experts_path(layer)).register_forward_pre_hook(
                lambda _, inputs, seen=seen: seen.append(inputs[1])
            )
        logits = model(tokens()).logits
        assert len(seen) == len(anatomy.moe_layers) and not torch.equal(logits, own)
        assert all(chosen.shape == (tokens().numel(), active) for chosen in seen)
        assert all(len(set(row)) == active for chosen in seen for row in chosen.tolist())
    for active in (0, anatomy.experts + 1):
        with pytest.raises(UserError, match=f"active is {active}, expected 1 to {anatomy.experts}"):
            load(folder, active=active)
    # What is written for an engine says it in its configuration.
    merge_adapter(folder, None, folder.with_name(f"{family}-one"), active=1)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder.with_name(f"{family}-one"), dtype=torch.float32).eval()
    torch.testing.assert_close(theirs(tokens()).logits, load(folder, active=1)(tokens()).logits, rtol=0, atol=1e-5)


def test_a_dense_model_has_nothing_to_route_to_and_a_router_that_kept_its_own_number_is_noticed(
    checkpoints: dict[str, Path],
) -> None:
    with pytest.raises(UserError, match="active is 1, but llama is a dense model"):
        load(checkpoints["llama"], active=1)
    model = load(checkpoints["olmoe"], active=2)
    model.config.num_experts_per_tok = 3
    with pytest.raises(RuntimeError, match="layer 0 routes a token to 2 experts, "):
        assert_routing(model)


def test_of_a_model_that_also_sees_the_language_model_is_loaded_and_served(tmp_path: Path) -> None:
    """Gemma 3 from 4B up is published with a vision tower around it."""
    text = CONFIGS["gemma3_text"]()
    text.tie_word_embeddings = True
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = Gemma3Config(text_config=text.to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4)
    torch.manual_seed(0)
    whole = Gemma3ForConditionalGeneration(config).eval()
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    whole.save_pretrained(tmp_path / "base")
    stored = {name for file in (tmp_path / "base").glob("*.safetensors") for name in load_file(file)}
    assert any(name.startswith("vision_tower.") for name in stored), "the published names are others"
    expected = whole(tokens()).logits
    loaded = load(tmp_path / "base")
    assert type(loaded).__name__ == "Gemma3ForCausalLM"
    torch.testing.assert_close(loaded(tokens()).logits, expected, rtol=0, atol=1e-6)
    adapted = attach(loaded, AdapterSpec(rank=2, alpha=4, attention=True), seed=0)
    for name, tensor in adapter_tensors(adapted).items():
        if "lora_B" in name:
            tensor.normal_(std=0.1)
    save_adapter(adapted, tmp_path / "adapter", base="b", revision=None)
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert type(merged).__name__ == "Gemma3ForCausalLM"
    torch.testing.assert_close(merged(tokens()).logits, adapted(tokens()).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", MOE)
def test_every_expert_is_in_4_bits_on_both_paths_with_the_same_values(
    family: str, checkpoints: dict[str, Path]
) -> None:
    reference = load(checkpoints[family], "unfused", quantise=True)
    fused = load(checkpoints[family], "fused", quantise=True)
    anatomy = anatomy_of(fused.config)
    for layer in anatomy.moe_layers:
        experts = fused.get_submodule(anatomy.experts_path(layer))
        assert {p.dtype for n, p in experts.named_parameters() if "bias" not in n} == {torch.uint8}
        stacks = {"gate_up": experts.gate_up.read().clone(), "down": experts.down.read().clone()}
        for expert in range(anatomy.experts):
            for role in anatomy.family.projections:
                weight = reference.get_submodule(anatomy.projection_path(layer, expert, role)).weight
                assert weight.dtype == torch.uint8
                values = dequantize_4bit(weight.data, weight.quant_state)
                stack = stacks["down" if role == "down" else "gate_up"][expert, anatomy.rows(role)]
                assert torch.equal(stack, values)
    for model in (reference, fused):
        report = load_report(model)
        assert report.share_4bit == 1.0
        assert report.router_dtype == "float32"
        assert report.device_bytes == 0
        assert report.host_bytes < 0.6 * load_report(tiny_model(family, "fused")).host_bytes
        assert "100% in 4 bits" in str(report)


def test_a_model_that_answered_first_can_still_be_trained(checkpoints: dict[str, Path]) -> None:
    release_buffers()
    model = load(checkpoints["mixtral"], "fused", quantise=True)
    with torch.inference_mode():
        model(tokens())
    attach(model, AdapterSpec(rank=4, alpha=8, experts=(0, 3)), seed=0).train()(tokens()).logits.sum().backward()


def test_nothing_is_repacked_on_cpus_with_avx512_bf16(checkpoints: dict[str, Path]) -> None:
    """bitsandbytes would repack in eval mode, and a loaded model would differ from the one in memory."""
    model = load(checkpoints["mixtral"], "unfused", quantise=True)
    flags = [m.support_avx512bf16_for_cpu for m in model.modules() if isinstance(m, Linear4bit)]
    assert len(flags) == 2 * (4 + 8 * 3)
    assert not any(flags)


def test_experts_left_in_16_bits_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="not all in 4 bits: experts: 196,608 values, 0% in 4 bits"):
        assert_quantised(tiny_model("mixtral", "fused"))


@pytest.mark.parametrize("family", MOE)
@pytest.mark.parametrize("offload", [False, True])
def test_the_paths_agree_in_4_bits_forward_and_backward(
    family: str, offload: bool, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Dequantised values are the same bits and products are fp32, so the tolerance is that of fp32."""
    spec = AdapterSpec(rank=4, alpha=8, experts=(0, 3), attention=True)
    results = []
    for experts in ("unfused", "fused"):
        base = load(checkpoints[family], experts, quantise=True, offloaded=ALL if offload and experts == "fused" else 0)
        model = attach(base, spec, seed=0)
        for name, tensor in adapter_tensors(model).items():
            if "lora_B" in name:
                tensor.copy_(torch.linspace(-0.1, 0.1, tensor.numel()).view(tensor.shape))
        save_adapter(model, tmp_path / experts, base="b", revision=None)
        answers = model.eval()(tokens()).logits.detach()
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        torch.manual_seed(0)  # Phi's router draws experts while it learns
        out = model(tokens(), labels=tokens())
        out.loss.backward()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.grad
        results.append((out.logits.detach(), adapter_tensors(model)))
    (logits, gradients), (fast_logits, fast_gradients) = results
    torch.testing.assert_close(fast_logits, logits, rtol=0, atol=2e-6)
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(fast_gradients[name], gradient, rtol=0, atol=1e-5 * scale + 1e-9)
    reloaded = load_adapter(load(checkpoints[family], "fused", quantise=True), tmp_path / "unfused")
    torch.testing.assert_close(reloaded(tokens()).logits, answers, rtol=0, atol=2e-6)


def test_offloaded_layers_are_fetched_a_layer_ahead(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    config = CONFIGS["mixtral"]()
    config.num_hidden_layers = 5
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    resident = load(tmp_path, quantise=True)
    model = load(tmp_path, quantise=True, offloaded=ALL)
    ring = model.get_submodule("model.layers.0.mlp.experts").packed.fetch.func.__self__
    ids = tokens()
    for _ in range(3):
        assert torch.equal(model(ids).logits, resident(ids).logits)
    assert load_report(model).host_bytes == load_report(resident).host_bytes
    assert all(len(buffer) == ring.layers[0].size for buffer in ring.buffers)
    ring.waits = 0
    with torch.inference_mode():
        for _ in range(3):
            model(ids)
    # From the last layer round to the first: sampling waits for no layer after its first.
    assert ring.waits <= 1
    ring.waits = 0
    trained = attach(model, AdapterSpec(rank=1, alpha=1, experts=(0,)), seed=0)
    trained.enable_input_require_grads()
    trained.gradient_checkpointing_enable({"use_reentrant": False})
    trained.train()
    for _ in range(4):
        trained(ids, labels=ids).loss.backward()
    # Up and down again: after the first layer, the layer that comes next was always the one prefetched.
    assert ring.waits <= 1


def test_gpt_oss_is_read_from_mxfp4(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The published form: codes and scales, unpacked by transformers' own routine for the expected values."""
    family = "gpt_oss"
    tensors: dict[str, torch.Tensor] = {}
    for shard in checkpoints[family].glob("*.safetensors"):
        tensors |= load_file(shard)
    expected = tiny_model(family)
    generator = torch.Generator().manual_seed(0)
    for layer in range(2):
        for name, out_features, in_features in (("gate_up_proj", 128, 64), ("down_proj", 64, 64)):
            key = f"model.layers.{layer}.mlp.experts.{name}"
            shape = (8, out_features, in_features // 32)
            blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
            scales = torch.randint(118, 124, shape, dtype=torch.uint8, generator=generator)
            del tensors[key]
            tensors |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
            values = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            getattr(expected.model.layers[layer].mlp.experts, name).data.copy_(values)
    save_file(tensors, tmp_path / "model.safetensors")
    config = copy.deepcopy(expected.config)
    config.quantization_config = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    config.save_pretrained(tmp_path)
    ids = tokens()
    for experts in ("fused", "unfused"):
        torch.testing.assert_close(load(tmp_path, experts)(ids).logits, expected(ids).logits, rtol=0, atol=1e-6)
    assert load_report(load(tmp_path, quantise=True)).share_4bit == 1.0


def test_what_cannot_be_loaded_is_said(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no model\.safetensors and no model\.safetensors\.index\.json"):
        load(_copy(checkpoints["llama"], tmp_path / "empty", "[!m]*.json"))
    shard = sorted(checkpoints["mixtral"].glob("*.safetensors"))[0].name
    missing = _copy(checkpoints["mixtral"], tmp_path / "missing")
    (missing / shard).unlink()
    with pytest.raises(UserError, match=r"names \d+ files of weights, of which 1 are not there"):
        load(missing)
    damaged = _copy(checkpoints["mixtral"], tmp_path / "damaged")
    (damaged / shard).write_bytes((damaged / shard).read_bytes()[:100])
    with pytest.raises(UserError, match=f"{shard} cannot be read"):
        load(damaged)
    other = _copy(checkpoints["mixtral"], tmp_path / "other")
    text = (other / "config.json").read_text().replace('"intermediate_size": 64', '"intermediate_size": 16')
    (other / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"has shape \(64, 64\), but its config.json asks for \(16, 64\)"):
        load(other)
    extra = _copy(checkpoints["mixtral"], tmp_path / "extra")
    save_file(load_file(extra / shard) | {"model.layers.0.surprise": torch.zeros(1)}, extra / shard)
    with pytest.raises(UserError, match=r"no place for, such as model\.layers\.0\.surprise"):
        load(extra)
    tied = _copy(checkpoints["mixtral"], tmp_path / "tied")  # transformers#42612: the head was overwritten by silence
    text = (tied / "config.json").read_text()
    (tied / "config.json").write_text(text.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    with pytest.raises(UserError, match=r"lm_head.weight is tied to the embeddings, .* holds another one"):
        load(tied)
    with pytest.raises(UserError, match="16 x 64 values does not divide into NF4 blocks"):
        PackedExperts(
            anatomy_of(MixtralConfig(hidden_size=64, intermediate_size=16)),
            torch.float32,
            torch.device("cpu"),
        )
    with pytest.raises(UserError, match="of quantised, fused experts, or of an unquantised dense model"):
        load(checkpoints["mixtral"], offloaded=1)


def _copy(source: Path, target: Path, pattern: str = "*") -> Path:
    target.mkdir()
    for file in source.glob(pattern):
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize("family", MOE)
def test_the_types_of_a_gpu_run_fit_together(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """bf16 base in NF4, fp32 adapter, autocast to train, none to sample."""
    spec = AdapterSpec(rank=4, alpha=8, experts=(0, 3), attention=True, router="free")
    logits = []
    for experts in ("unfused", "fused"):
        base = load_base(checkpoints[family], experts=experts, dtype=torch.bfloat16, quantise=True, device="cpu")
        model = attach(base, spec, seed=0).train()
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        model.gradient_checkpointing_enable({"use_reentrant": False})
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(tokens(), labels=tokens())
        out.loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        save_adapter(model, tmp_path / experts, base="b", revision=None)
        fresh = load_base(checkpoints[family], experts=experts, dtype=torch.bfloat16, quantise=True, device="cpu")
        sampled = load_adapter(fresh, tmp_path / experts)(tokens()).logits
        assert sampled.dtype == torch.bfloat16
        assert_close_in_bf16(sampled.float(), out.logits.detach().float())
        logits.append(out.logits.detach().float())
    assert_close_in_bf16(logits[1], logits[0])


def assert_close_in_bf16(logits: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 3e-2 of the largest logit for 95 % of the tokens.

    bf16 has 8 bits of mantissa, and the two sides round at other places a few times a layer. Where two
    experts nearly tie, rounding sends a token to the other one, and its logits differ by more.
    """
    worst = (logits - expected).abs().amax(dim=-1)
    assert float((worst <= 3e-2 * expected.abs().max()).float().mean()) >= 0.95
