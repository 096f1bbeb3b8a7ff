"""The transformers backend: the base in the precision that it was trained in, adapters put on as they were trained.

Nothing is merged, rounded or written: a base is loaded once, and every adapter that a stage asks for is put on it in
turn. Where a GPU is, `SamplingPlan` says how many answers are completed at once and which layers stay in host memory;
toy models, in float32, complete `sampling.batch` prompts at a time.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import UserError
from pipeline.common.machine import memory_bytes
from pipeline.models.cards import SLOW, Rates, rates_of
from pipeline.models.sizes import GIB, HOST_SHARE
from pipeline.sampling.backend import Completion, Model, Request
from pipeline.sampling.chat import Chat
from pipeline.sampling.plan import SamplingPlan, plan_sampling
from pipeline.sampling.random_choice import choose, uniforms
from pipeline.sampling.settings import Sampling

if TYPE_CHECKING:
    import torch

# Full batches that are completed, and kept, together: what a kill costs at most. The last rows of them run alone.
BATCHES_TOGETHER = 4


class HuggingFace:
    """Completes chats with one model after another; what two have in common is loaded once."""

    def __init__(self, settings: Sampling) -> None:
        self._settings = settings
        self._chats: dict[Path, Chat] = {}
        self._plans: dict[tuple[Path, int | None], SamplingPlan] = {}
        self._loaded: tuple[Path, int | None, int] | None = None
        self._model: Any = None
        self._adapter: Path | None = None

    def together(self, model: Model, requests: Sequence[Request]) -> int:
        """How many requests are completed, and kept, together."""
        if model.precision == "float32":
            return self._settings.batch or len(requests)
        return BATCHES_TOGETHER * self._plan(model, requests).batch

    def version(self) -> str:
        """transformers; its version is among the libraries'."""
        return "transformers"

    def complete(self, model: Model, batches: Sequence[list[Request]]) -> Iterator[tuple[int, list[Completion]]]:
        """Each batch's place and its completions, in order. Raises UserError when the model cannot be held, or used."""
        self.load(model)
        for place, requests in enumerate(batches):
            yield place, self._complete(model, requests)

    def _complete(self, model: Model, requests: list[Request]) -> list[Completion]:
        import torch

        from pipeline.sampling.generate import Room, generate

        settings, chat = self._settings, self._chat(model)
        prompts = [chat.tokens(request.prompt) for request in requests]
        seeds = [request.seed for request in requests]
        points = torch.from_numpy(uniforms(seeds, settings.max_new_tokens)).to(self._model.device)

        def choose_tokens(numbers: "torch.Tensor", steps: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
            return choose(scores, points[numbers, steps], settings.temperature, settings.top_p)

        plan = self._plans.get(_base(model))
        room = None if plan is None else Room(rows=plan.batch, columns=plan.room, prefill=plan.prefill)
        try:
            tokens = generate(self._model, prompts, choose_tokens, settings.max_new_tokens, chat.ends, chat.pad, room)
        except torch.OutOfMemoryError as error:
            rows = len(prompts) if room is None else min(room.rows, len(prompts))
            raise UserError(
                f"{rows} answers at once do not fit this GPU: {str(error).splitlines()[0]} End what else runs on it "
                f"and run again, or set sampling.batch to {max(1, rows // 2)}, which draws all of the study's answers "
                "again."
            ) from error
        return [chat.read(prompt, completion) for prompt, completion in zip(prompts, tokens, strict=True)]

    def _chat(self, model: Model) -> Chat:
        if model.base.path not in self._chats:
            self._chats[model.base.path] = Chat(model.base.path, self._settings.system)
        return self._chats[model.base.path]

    def _plan(self, model: Model, requests: Sequence[Request]) -> SamplingPlan:
        """The plan of a base, made when it is first asked: from the machine's size, so that a restart plans alike."""
        if _base(model) not in self._plans:
            from pipeline.models.checkpoint import read_language_config

            config = read_language_config(model.base.path, model.base.active)
            chat = self._chat(model)
            gpu, host = machine_bytes()
            assert model.precision != "float32"
            self._plans[_base(model)] = plan_sampling(
                config,
                model.lora,
                precision=model.precision,
                new_tokens=self._settings.max_new_tokens,
                gpu_bytes=gpu,
                host_bytes=host,
                requests=len(requests),
                prompt_tokens=max(len(chat.tokens(prompt)) for prompt in {request.prompt for request in requests}),
                most=self._settings.batch,
                rates=gpu_rates(),
            )
        return self._plans[_base(model)]

    def load(self, model: Model) -> Any:
        """The model, ready to answer, as transformers has it: kept until another one is asked for."""
        from pipeline.models.loading import load_frozen, training_device

        device = training_device(model.precision)
        plan = self._plans.get(_base(model))
        wanted = (*_base(model), plan.streamed if plan else 0)
        if self._loaded != wanted:
            self._model, self._adapter, self._loaded = None, None, None
            if plan is not None:
                print(f"sampling: {plan}", flush=True)
                _refuse_if_taken(plan, device)
            self._model = load_frozen(model.base, model.precision, device, offloaded=wanted[2])
            if plan is not None:
                from pipeline.sampling.attention import use_grouped_attention

                use_grouped_attention(self._model)
            self._loaded = wanted
        if self._adapter != model.adapter:
            self._put_on(model)
        return self._model

    def _put_on(self, model: Model) -> None:
        """Have the loaded base wear the model's adapter, and no other."""
        from pipeline.models.adapters import fix_factors, load_adapter, remove_adapter

        if self._adapter is not None:
            self._model = remove_adapter(self._model)
        self._adapter = None
        if model.adapter is not None:
            self._model = load_adapter(self._model, model.adapter, base=model.base)
            fix_factors(self._model)
        self._adapter = model.adapter


def _base(model: Model) -> tuple[Path, int | None]:
    """What two models have in common where one can wear the other's adapter."""
    return model.base.path, model.base.active


def machine_bytes() -> tuple[int, int]:
    """(bytes of the GPU, bytes of host memory that weights may take); without a GPU, host memory stands for it."""
    import torch

    host = int(HOST_SHARE * memory_bytes())
    if not torch.cuda.is_available():
        return host, 0
    return torch.cuda.get_device_properties(0).total_memory, host


def gpu_rates() -> Rates:
    """The rates of this machine's GPU, by its name, so that a restart plans alike."""
    import torch

    return rates_of(torch.cuda.get_device_properties(0).name) if torch.cuda.is_available() else SLOW


def _refuse_if_taken(plan: SamplingPlan, device: "torch.device") -> None:
    """Raise UserError when other processes hold what the plan counts on."""
    import torch

    if device.type != "cuda":
        return
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    if free < plan.peak - plan.parts["context and slack"]:
        raise UserError(
            f"sampling needs {plan.peak / GIB:.1f} of the GPU's {total / GIB:.1f} GiB, and {free / GIB:.1f} are free: "
            "end what else runs on it (nvidia-smi lists it), and run again."
        )
