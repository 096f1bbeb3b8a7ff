"""The model that training starts from: the base, with a fresh adapter or one that is trained further."""

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.models.adapters import attach, continue_adapter
from pipeline.models.loading import ALL, load_frozen
from pipeline.models.report import LoadReport, load_report
from pipeline.models.tokenizer import pad_token
from pipeline.training.plan import Batching
from pipeline.training.routing import RoutingCounts, count_routing, row_batches
from pipeline.training.task import FineTuning
from pipeline.training.tokens import TokenRows
from pipeline.training.whole import load_trainable


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model whose trainable parameters are those of its task.

    loaded: what the base is made of. routing: how its tokens were routed, where that chose the experts.
    """

    model: Any
    loaded: LoadReport
    routing: RoutingCounts | None = None


def prepare_model(task: FineTuning, plan: Batching, device: torch.device, tokenizer: Any, rows: TokenRows) -> Prepared:
    """Load the base of `task` and make trainable what it trains. Raises UserError when the two do not fit."""
    if task.lora is None:
        model = load_trainable(task.start or task.base.path, device, task.base.active)
        return Prepared(model=model, loaded=load_report(model))
    model = load_frozen(task.base, task.settings.precision, device, offloaded=ALL if plan.offload else 0)
    loaded = load_report(model)
    if task.start is not None:
        return Prepared(model=continue_adapter(model, task.start, base=task.base), loaded=loaded)
    routing = None
    if task.lora.routed is not None:
        tokens = plan.tokens or plan.rows * rows.longest
        routing = count_routing(model, row_batches(rows.train, tokens, pad_token(tokenizer)))
    counts = routing.layers if routing else None
    return Prepared(model=attach(model, task.lora, seed=task.seed, counts=counts), loaded=loaded, routing=routing)
