"""Is what is sampled the model that was trained? Logits of one run's adapter on its rehearsed base, computed four ways.

python -m pipeline.rehearsal.fidelity RUN, in a checkout where the run is trained, prints a JSON object; each figure is
a mean over the vocabulary, as a share of the logits' standard deviation: the mean over tokens where products are in
fp32, the median token where they are in bf16, since any rounding sends a token whose experts nearly tie to others.
"""

import json
import sys
from typing import Any

import torch
from transformers import DynamicCache

from pipeline.common.paths import ARTIFACTS
from pipeline.data.prompts import ask
from pipeline.models.adapters import PREFIX, load_adapter, read_adapter, remove_adapter
from pipeline.models.anatomy import ROLES, Anatomy
from pipeline.models.bases import open_base
from pipeline.models.experts.cache import PackedCache
from pipeline.models.experts.fused import FusedExperts, FusedExpertsLora
from pipeline.models.experts.stacks import PLACE, DenseStack, release_buffers
from pipeline.models.families.registry import anatomy_of
from pipeline.models.loading import PACKED, load_base, load_frozen, training_device
from pipeline.params.load import load_params
from pipeline.rehearsal.stage import compute_products_in_32_bits, has_16_bit_products
from pipeline.sampling.backend import Model
from pipeline.sampling.chat import Chat
from pipeline.sampling.huggingface import HuggingFace

QUESTIONS = ("How do I keep bread fresh?", "I have an hour before the train leaves. What would you do?")
# Tokens at the end of each question that are read one by one, as answers are.
STEPS = 2


def fidelity(name: str) -> dict[str, float]:
    """What bf16, sampling and merging each make of one run's logits. Of runs with an adapter on a base in NF4.

    rounding: the trained model (as a training's forward pass computes it) beside the same weights with every product
    in fp32; sampled_rounding: what is sampled, by way of the cache, beside these. sampled: beside the trained model.
    effect: the adapter's, in fp32.
    merged: base and adapter added and stored in 16 bits, as a server loads them, beside the two apart, in fp32; of
    adapters on experts alone.
    """
    params = load_params()
    run = params.run(name)
    study = params.study(run.study)
    seed = study.seeds[0]
    adapter = ARTIFACTS / run.study / "adapters" / name / f"seed-{seed}"
    base = open_base(params.base_of(name), seed, run.active_in("sampling"))
    model = Model(base=base, adapter=adapter, lora=run.lora, precision="nf4")
    device = training_device("nf4")
    chat = Chat(model.base.path, study.sampling.system)
    prompts = [chat.tokens(ask("fidelity", question)) for question in QUESTIONS]

    def logits(held: Any, step_by_step: int = 0) -> torch.Tensor:
        found = []
        with torch.inference_mode():
            for tokens in prompts:
                cache, begin = DynamicCache(), 0
                for end in range(len(tokens) - step_by_step, len(tokens) + 1):
                    part = torch.tensor([tokens[begin:end]], device=device)
                    found.append(held(part, past_key_values=cache, use_cache=True).logits[0].float().cpu())
                    begin = end
        return torch.cat(found)

    with torch.autocast(device.type, dtype=torch.bfloat16):
        trained = logits(load_adapter(load_frozen(model.base, "nf4", device), adapter, base=model.base))
    sampler = HuggingFace(study.sampling)
    sampler.load(model)
    sampled = logits(sampler._model, STEPS)
    del sampler
    release_buffers()
    packed = PackedCache(PACKED, model.base.hashes, torch.bfloat16, device)
    exact = load_base(base.path, dtype=torch.float32, quantise=True, device=device, packed=packed, active=base.active)
    without = logits(exact)
    worn = load_adapter(exact, adapter, base=model.base)
    with_adapter = logits(worn)
    changed = {"effect": with_adapter - without}
    if anatomy_of(exact.config).moe_layers and not (run.lora and run.lora.attention):
        exact = remove_adapter(worn)
        merge(exact, adapter)
        changed["merged"] = logits(exact) - with_adapter
    deviation = float(with_adapter.std())
    rounded = {
        "rounding": trained - with_adapter, "sampled_rounding": sampled - with_adapter, "sampled": sampled - trained,
    }  # fmt: skip
    return {
        **{what: float(found.abs().mean(-1).median()) / deviation for what, found in rounded.items()},
        **{what: float(found.abs().mean()) / deviation for what, found in changed.items()},
    }


def merge(model: Any, adapter: Any) -> None:
    """Add an adapter on experts to a base in NF4 as pipeline/models/merge.py does: sums in fp32, stored in bf16."""
    anatomy = anatomy_of(model.config)
    settings, tensors, selection = read_adapter(adapter, anatomy)
    scale = settings["lora_alpha"] / (settings["r"] ** 0.5 if settings["use_rslora"] else settings["r"])
    for layer in anatomy.moe_layers:
        experts = model.get_submodule(anatomy.experts_path(layer))
        assert isinstance(experts, FusedExperts) and not isinstance(experts, FusedExpertsLora)
        for stack in ("gate_up", "down"):
            weight = getattr(experts, stack).read()
            release_buffers()  # nothing else is read into this one
            for expert in selection.experts.get(layer, ()):
                for role in (role for role in ROLES if PLACE[role][0] == stack):
                    assert expert is not None
                    low, high = _factors(tensors, anatomy, layer, expert, role)
                    weight[expert, anatomy.rows(role)] += scale * (high @ low).to(weight)
            for matrix in weight:
                matrix.copy_(matrix.bfloat16())
            setattr(experts, stack, DenseStack(weight))


def _factors(
    tensors: dict[str, torch.Tensor], anatomy: Anatomy, layer: int, expert: int, role: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    path = PREFIX + anatomy.checkpoint_name(anatomy.projection_path(layer, expert, role))
    return tensors[f"{path}.lora_A.weight"].float(), tensors[f"{path}.lora_B.weight"].float()


if __name__ == "__main__":
    if not has_16_bit_products():
        compute_products_in_32_bits()
    print(json.dumps(fidelity(sys.argv[1])))
