"""What one study needs beyond a machine: pinned data, judges' keys, models, GPU memory, DVC's record."""

import http.client
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from pipeline.api.config import EndpointConfig
from pipeline.api.keys import read_key
from pipeline.common.errors import UserError
from pipeline.common.files import read_yaml
from pipeline.common.machine import AMPERE, Gpu, memory_bytes
from pipeline.common.paths import PARAMS
from pipeline.data.examples import read_examples
from pipeline.data.own import verified
from pipeline.data.suites import load_suite
from pipeline.doctor.check import GB, ROOT, Check
from pipeline.doctor.reachable import answer, ask, status
from pipeline.judging.templates import load_templates
from pipeline.models.sizes import GIB, HOST_SHARE
from pipeline.params.schema import HubBase, Params
from pipeline.training.memory import plan_memory


def examine(params: Params, name: str, gpus: tuple[Gpu, ...], *, offline: bool) -> Iterator[Check]:
    """Every check of the study `name`, in order."""
    study = params.study(name)
    yield check_dvc(params, name)
    if study.world == "toy":
        return
    yield check_data(params, name)
    bases = {base: params.hub_base(base) for base in params.bases_of(name) if base in params.bases.hub}
    behind = {base: params.bases.api[base] for base in params.bases_of(name) if base in params.bases.api}
    here = {base: cached(hub.repository, hub.revision) for base, hub in bases.items()}
    questions: dict[str, Callable[[], Check]] = {}
    if not offline:
        questions |= {f"judge {judge}": _asker(check_judge, judge, config) for judge, config in study.judges.items()}
        questions |= {f"model {base}": _asker(check_model, base, bases[base]) for base in bases if not here[base]}
    answers = ask(questions)
    for judge, config in study.judges.items():
        missing = check_key(judge, config)
        yield missing or answers.get(f"judge {judge}", Check("ok", "judge", f"{judge}: {_key_found(config)}"))
    for base, hub in bases.items():
        if here[base]:
            yield Check("ok", "model", f"{base}: {hub.repository} is in the Hugging Face cache, whole")
        else:
            unknown = Check("warn", "model", f"{base}: {hub.repository} is not in the Hugging Face cache")
            yield answers.get(f"model {base}", unknown)
    for base, model in behind.items():
        endpoint = model.client(None, max_reply_tokens=1)
        missing = check_key(f"bases.api.{base}", endpoint)
        yield missing or Check("ok", "model", f"{base}: {model.model} at {endpoint.endpoint}, {_key_found(endpoint)}")
    yield check_model_disk(bases, here, offline=offline)
    yield from check_gpu_memory(params, name, gpus)


def check_dvc(params: Params, name: str) -> Check:
    """What dvc.lock records of the study, without hashing anything: `dvc status` does that in seconds to minutes."""
    stages = params.stages_of(name)
    path = ROOT / "dvc.lock"
    if not path.exists():
        return Check("ok", "DVC", f"no dvc.lock: none of {name}'s {len(stages)} stages has been run")
    try:
        lock = read_yaml(path, "nothing has been run")
        recorded = {stage: entry.get("outs", []) for stage, entry in lock["stages"].items() if stage in stages}
        outs = [ROOT / out["path"] for entry in recorded.values() for out in entry]
    except (UserError, KeyError, TypeError, AttributeError):
        remedy = "restore it: git checkout -- dvc.lock (what was run stays in DVC's cache)"
        return Check("fail", "DVC", "dvc.lock is damaged", remedy)
    there = sum(out.exists() for out in outs)
    return Check(
        "ok", "DVC", f"dvc.lock records {len(recorded)} of {name}'s {len(stages)} stages; {there} of their "
        f"{len(outs)} outputs are here",
    )  # fmt: skip


def check_data(params: Params, name: str) -> Check:
    """The study's suites, training sets and judge prompts, read (and so verified) as its stages read them."""
    study, data = params.study(name), ROOT / "data"
    reads: dict[str, Callable[[], object]] = {
        f"suite {suite}": _asker(load_suite, suite, data, study.seeds[0])
        for suite in study.suites
        if study.own_suite(suite) is None
    }
    parts = [part for run in params.runs_of(name).values() for part in run.parts]
    sets = dict.fromkeys(part.name for part in parts if part.name is not None)
    reads |= {f"training set {chosen}": _asker(read_examples, chosen, data) for chosen in sets}
    own = {(part.file, part.sha256) for part in parts if part.file is not None}
    own |= {(suite.file, suite.sha256) for suite in study.own_suites}
    reads |= {f"your {file}": _asker(verified, str(ROOT / file), digest, str(PARAMS)) for file, digest in sorted(own)}
    reads |= {
        f"judge {judge}'s prompts": _asker(load_templates, ROOT / config.templates, config.templates_sha256)
        for judge, config in study.judges.items()
    }
    wrong = {}
    for what, read in reads.items():
        try:
            read()
        except UserError as error:
            wrong[what] = str(error)
    if not wrong:
        return Check("ok", "data", f"{len(reads)} suites, training sets and judge prompts are there and verified")
    what, why = next(iter(wrong.items()))
    found = f"{len(wrong)} of {len(reads)} cannot be read: {', '.join(wrong)}. The first: {why}"
    remedy = "`make reproduce` fetches them first; `make data SOURCE=DIR` takes them from a folder"
    return Check("warn", "data", found, remedy)


def check_key(judge: str, config: EndpointConfig) -> Check | None:
    """A failed check if the judge's key is not there or cannot be one, else None."""
    try:
        read_key(config)
    except UserError as error:
        remedy = f"export {config.api_key_env}=..., or give the study another judge (`judges` in params.yaml)"
        return Check("fail", "judge", f"{judge}: {str(error).partition('; ')[0].rstrip('.')}", remedy)
    return None


def check_judge(judge: str, config: EndpointConfig) -> Check:
    """Ask the judge's endpoint for its list of models, which costs nothing."""
    where = config.base_url or "https://api.openai.com/v1"
    try:
        key = read_key(config)
    except UserError:
        return Check("fail", "judge", judge)  # check_key says why
    code = status(f"{where.rstrip('/')}/models", key, "GET")
    found = f"{judge}: {_key_found(config)}, {urlsplit(where).netloc}"
    if code is None:
        return Check("warn", "judge", f"{found} cannot be reached", "the judge stage needs it; is the network up?")
    if code in (401, 403):
        return Check("fail", "judge", f"{found} refuses it (HTTP {code})", f"put a valid key in {config.api_key_env}")
    return Check("ok", "judge", f"{found} answers")


def _key_found(config: EndpointConfig) -> str:
    return "needs no key" if config.api_key_env is None else f"{config.api_key_env} is set (not shown)"


def check_model(base: str, hub: HubBase) -> Check:
    """Ask the hub for the base's config.json at its commit, with the token if there is one."""
    from huggingface_hub import constants

    found = f"{base}: {hub.repository} at {hub.revision[:12]}"
    if constants.HF_HUB_OFFLINE:
        return Check("warn", "model", f"{found} is not in the cache, and HF_HUB_OFFLINE is set", "unset it")
    code = status(f"{constants.ENDPOINT}/{hub.repository}/resolve/{hub.revision}/config.json", _hub_token())
    if code is None:
        remedy = "fetch it where there is a network (`dvc repro pin@...`) and bring HF_HOME along"
        return Check("warn", "model", f"{found} cannot be reached", remedy)
    if code in (401, 403):
        token = "the Hugging Face token has no access" if _hub_token() else "there is no Hugging Face token"
        remedy = f"accept its licence at https://huggingface.co/{hub.repository}, then export HF_TOKEN=..."
        return Check("fail", "model", f"{found} is gated and {token} (HTTP {code})", remedy)
    if code >= 400:
        remedy = f"check bases.hub.{base} in params.yaml" if code == 404 else "try again later"
        return Check("fail" if code == 404 else "warn", "model", f"{found}: the hub answers HTTP {code}", remedy)
    return Check("ok", "model", f"{found} can be fetched")


def check_model_disk(bases: dict[str, HubBase], here: dict[str, bool], *, offline: bool) -> Check:
    """Room for the checkpoints that are not in the Hugging Face cache yet, by the sizes that the hub gives."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free / GB
    absent = {base: hub for base, hub in bases.items() if not here[base]}
    if not absent:
        return Check("ok", "model disk", f"nothing to fetch; {free:.1f} GB free for {cache}")
    asked = {} if offline or constants.HF_HUB_OFFLINE else ask({b: _asker(_size, hub) for b, hub in absent.items()})
    sizes = {base: size for base, size in asked.items() if size is not None}
    needed = sum(sizes.values()) / GB
    unknown = sorted(absent.keys() - sizes.keys())
    found = f"{free:.1f} GB free for {cache}, {needed:.1f} GB to fetch" if sizes else f"{free:.1f} GB free for {cache}"
    if needed > free:
        return Check("fail", "model disk", found, "free some space, or set HF_HOME to a larger disk")
    if unknown:
        return Check("warn", "model disk", f"{found}; sizes of {', '.join(unknown)} unknown", "ask again online")
    return Check("ok", "model disk", found)


def _size(hub: HubBase) -> int | None:
    """Bytes of the files that `pin@` fetches, as the hub lists them; None if it does not say."""
    from huggingface_hub import constants

    url = f"{constants.ENDPOINT}/api/models/{hub.repository}/tree/{hub.revision}?recursive=true"
    try:
        with answer(url, _hub_token()) as reply:
            entries = json.loads(reply.read())
        return sum(entry["size"] for entry in entries if _is_fetched(entry["path"]))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None


def _is_fetched(path: str) -> bool:
    """As checkpoint_folder of pipeline/models/checkpoint.py chooses."""
    wanted = path.endswith((".safetensors", ".json", ".jinja")) or path.startswith("tokenizer")
    return wanted and not path.startswith(("original/", "metal/"))


def cached(repository: str, revision: str) -> bool:
    """Whether every weight file of the checkpoint is in the Hugging Face cache."""
    folder = snapshot(repository, revision)
    index = folder / "model.safetensors.index.json"
    if not (folder / "config.json").exists():
        return False
    if not index.exists():
        return any(folder.glob("*.safetensors"))
    files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / file).exists() for file in files)


def snapshot(repository: str, revision: str) -> Path:
    """The Hugging Face cache's folder of one commit, whether it is there or not."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots" / revision


def check_gpu_memory(params: Params, name: str, gpus: tuple[Gpu, ...]) -> Iterator[Check]:
    """Each base's most demanding run against the first usable GPU, where the base's config is in the cache."""
    gpu = next((gpu for gpu in gpus if gpu.capability >= AMPERE and gpu.memory), None)
    if gpu is None:
        return
    training = params.study(name).training
    if training.precision == "float32":
        return
    for base in params.bases_of(name):
        if base in params.bases.api:
            continue
        hub = params.hub_base(base)
        path = snapshot(hub.repository, hub.revision) / "config.json"
        if not path.exists():
            yield Check("warn", "GPU memory", f"{base}: cannot be planned before its config.json is in the cache")
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        # Of a model that also sees, the language model.
        config = SimpleNamespace(**{"tie_word_embeddings": False} | content.get("text_config", content))
        runs = [run for key, run in params.runs_of(name).items() if params.base_of(key) == base and run.data]
        if not runs:
            continue
        try:
            plans = [
                plan_memory(
                    config,
                    run.lora,
                    precision=training.precision,
                    sequence_length=training.max_tokens,
                    effective_batch=training.batch,
                    gpu_bytes=gpu.memory or 0,
                    host_bytes=int(HOST_SHARE * memory_bytes()),
                    devices=training.devices,
                )
                for run in runs
            ]
        except UserError as error:
            yield Check("fail", "GPU memory", f"{base}: {error}", "use a GPU with more memory")
        except AttributeError as error:
            yield Check("warn", "GPU memory", f"{base}: its config.json has no {error.name}, so nothing is planned")
        else:
            most = max(plans, key=lambda plan: plan.peak)
            found = f"{base}: {most.peak / GIB:.1f} of {(gpu.memory or 0) / GIB:.1f} GiB at most"
            yield Check("ok", "GPU memory", found + (", experts in host memory" if most.offload else ""))


def _hub_token() -> str | None:
    """The Hugging Face token as the hub's client finds it."""
    from huggingface_hub import constants

    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    path = Path(constants.HF_TOKEN_PATH)
    if not token and path.exists():
        token = path.read_text(encoding="utf-8", errors="replace")
    return (token or "").strip() or None


def _asker(check: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: check(*arguments)
