"""The toy world's bases are made here, from scratch, on a CPU.

A base is one of transformers' own MoE or dense classes, some 76 thousand active parameters, trained on chat
documents of the toy grammar (pipeline/toy/): AdamW with a cosine schedule, loss on every token. One base
a seed. Other studies have no such stage: their bases are pinned Hugging Face revisions.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import write_text
from pipeline.common.paths import ARTIFACTS
from pipeline.models.determinism import each_seed, without_compiler
from pipeline.params.load import load_params
from pipeline.params.schema import ToyBase
from pipeline.training.settings import Pretraining


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this stage's arguments."""
    parser.add_argument("--base", required=True, help="a name under bases.toy in params.yaml")


def main(args: argparse.Namespace) -> None:
    """Make one base for every seed of its study, and for those that it has beside them."""
    without_compiler()
    params = load_params()
    study, base = params.study("toy"), params.toy_base(args.base)
    assert study.pretraining is not None
    folder = ARTIFACTS / "bases" / args.base

    losses = "seed,step,loss\n"
    for seed in each_seed((*study.seeds, *base.more_seeds), f"pretrain {args.base}", strict=True):
        losses += pretrain(base, study.pretraining, seed, folder / f"seed-{seed}")
    write_text(folder / "loss.csv", losses)


def pretrain(base: ToyBase, settings: Pretraining, seed: int, folder: Path) -> str:
    """Train a base and save it with its tokenizer in `folder`; return its loss curve as CSV rows.

    The corpus, the first weights and the order of documents depend on `seed` alone. Raises UserError when the loss,
    or a weight, is no finite number.
    """
    import torch

    from pipeline.models.finite import refuse_non_finite
    from pipeline.toy.corpora import pretraining_documents
    from pipeline.toy.tokenizer import build_tokenizer, encode

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = new_model(base, settings, tokenizer)
    count = settings.documents_per_step * settings.steps
    tokens = encode(tokenizer, pretraining_documents(base.corpus, count, seed))

    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, settings))
    rows = []
    for step, batch in enumerate(tokens.split(settings.documents_per_step), start=1):
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        if not loss.isfinite():
            raise UserError(
                f"pretraining of {folder} diverged: at step {step} of {settings.steps} the loss is {loss.item()}; "
                f"lower pretraining.learning_rate ({settings.learning_rate:g})."
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 20 == 0 or step == settings.steps:
            rows.append(f"{seed},{step},{loss.item():.6f}\n")

    refuse_non_finite(folder, dict(model.named_parameters()))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return "".join(rows)


def rate(step: int, settings: Pretraining) -> float:
    """The learning rate's factor at a step: linear warm-up, then a cosine to zero."""
    warm_up = (step + 1) / settings.warmup_steps
    return min(warm_up, 0.5 * (1 + math.cos(math.pi * step / settings.steps)))


def new_model(base: ToyBase, settings: Pretraining, tokenizer: Any) -> Any:
    """A freshly initialised model of one of transformers' classes.

    Embeddings start wider than transformers' 0.02: a model this narrow then learns to repeat the topic it
    is asked about in a quarter of the steps.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sparse: dict[str, Any] = {}
    if base.experts:
        sizes = {
            "qwen3_moe": {
                "num_experts": base.experts,
                "moe_intermediate_size": base.expert_width,
                "norm_topk_prob": True,
                "head_dim": base.hidden // base.heads,
            },
            "mixtral": {"num_local_experts": base.experts},
        }[base.architecture]
        routing = {"num_experts_per_tok": base.active, "output_router_logits": True, "router_aux_loss_coef": 0.01}
        sparse = sizes | routing
    config = AutoConfig.for_model(
        base.architecture,
        vocab_size=len(tokenizer),
        hidden_size=base.hidden,
        intermediate_size=base.expert_width,
        num_hidden_layers=base.layers,
        num_attention_heads=base.heads,
        num_key_value_heads=base.heads,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=settings.initializer_range,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sparse,
    )
    experts = {"experts_implementation": "grouped_mm"} if base.experts else {}
    # Eager attention is the fastest on a CPU at 41 tokens.
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", trust_remote_code=False, **experts)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=settings.embedding_range)
    return model
