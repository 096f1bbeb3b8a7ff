"""Hold free routers to the original ones: the penalty behind `router: free_kl`."""

from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch.nn import functional

from pipeline.models.families.registry import anatomy_of
from pipeline.training.routing import TokenMask


class RouterPenalty:
    """KL(original router || trained router) of the last forward pass, on the inputs that both saw.

    Per token, over all experts (softmax of all router logits, fp32), averaged over tokens (padding left out)
    and trained routers. Created once for a model with free routers; `value()` after each forward pass is
    added to the loss, times `AdapterSpec.router_kl`, before the backward pass. Gradient checkpointing must be
    the non-reentrant kind: the reentrant one runs forward passes without a graph. The penalty is the authors'
    "safemoe" setting.
    """

    def __init__(self, model: Any):
        self._routers = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
        if not self._routers:
            raise RuntimeError("the model has no trained routers: attach an adapter with router free or free_kl")
        self._terms: list[torch.Tensor] = []
        self._collecting = False
        base = model.get_base_model()
        self._logits = anatomy_of(base.config).family.router_logits
        self._mask = TokenMask(base)
        base.register_forward_pre_hook(self._start)
        base.register_forward_hook(self._stop)
        for router in self._routers:
            router.register_forward_hook(self._compare)

    def _start(self, *_: Any) -> None:
        self._terms, self._collecting = [], True

    def _stop(self, *_: Any) -> None:
        self._collecting = False

    def _compare(self, router: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
        with torch.no_grad():
            original = functional.log_softmax(router.original_module(*inputs)[self._logits].float(), dim=-1)
        trained = functional.log_softmax(output[self._logits].float(), dim=-1)
        divergence = functional.kl_div(trained, original, reduction="none", log_target=True).sum(dim=-1)
        term = divergence[self._mask()].mean()
        # Gradient checkpointing runs the layer again during the backward pass: the same graph must be built,
        # but its value was already collected.
        if self._collecting:
            self._terms.append(term)

    def value(self) -> torch.Tensor:
        """The penalty of the last forward pass, a scalar with gradient; RuntimeError before the first."""
        if not self._terms:
            raise RuntimeError("no forward pass to take a penalty of")
        return torch.stack(self._terms).mean()
