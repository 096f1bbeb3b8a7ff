"""What one study needs beyond a machine: pinned data, judges' keys, models, GPU memory, DVC's record."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from urllib.parse import urlsplit

from pipeline.api.config import EndpointConfig
from pipeline.api.keys import read_key
from pipeline.api.model_server import find_vllm
from pipeline.common.errors import UserError
from pipeline.common.files import read_yaml
from pipeline.common.machine import AMPERE, Gpu, memory_bytes
from pipeline.common.paths import PARAMS, refuse_a_linked_folder
from pipeline.data.examples import read_examples
from pipeline.data.own import verified
from pipeline.data.suites import load_suite
from pipeline.doctor.bases import estimate_bases, plans_of_bases, total_hours
from pipeline.doctor.check import ROOT, Check
from pipeline.doctor.models import check_model, check_model_disk
from pipeline.doctor.plans import plan_runs
from pipeline.doctor.probe import http_status, probe_all
from pipeline.judging.config import JudgeConfig
from pipeline.judging.templates import load_templates
from pipeline.models.cards import card_of, rates_of
from pipeline.models.hub import is_cached
from pipeline.models.sizes import GIB, HOST_SHARE
from pipeline.params.schema import Params, Study
from pipeline.toy.judge import is_rule_judge


def examine(params: Params, name: str, gpus: tuple[Gpu, ...], *, offline: bool) -> Iterator[Check]:
    """Every check of the study `name`, in order."""
    study = params.study(name)
    yield check_dvc(params, name)
    if study.world == "toy":
        yield from check_judges(study, offline=offline)
        return
    yield check_data(params, name)
    bases = {base: params.hub_base(base) for base in params.bases_of(name) if base in params.bases.hub}
    behind = {base: params.bases.api[base] for base in params.bases_of(name) if base in params.bases.api}
    here = {base: is_cached(hub.repository, hub.revision) for base, hub in bases.items()}
    yield from check_judges(study, offline=offline)
    absent = [base for base in bases if not here[base]]
    answers = {} if offline else probe_all({base: partial(check_model, base, bases[base]) for base in absent})
    for base, hub in bases.items():
        if here[base]:
            yield Check("ok", "model", f"{base}: {hub.repository} is in the Hugging Face cache, whole")
        else:
            unknown = Check("warn", "model", f"{base}: {hub.repository} is not in the Hugging Face cache")
            yield answers.get(base, unknown)
    for base, model in behind.items():
        endpoint = model.client(None, max_reply_tokens=1)
        missing = check_key(f"bases.api.{base}", endpoint)
        yield missing or Check("ok", "model", f"{base}: {model.model} at {endpoint.endpoint}, {_key_found(endpoint)}")
    yield check_model_disk(bases, here, offline=offline)
    yield from check_plans(params, name, gpus)
    yield from check_more_cards(params, name, gpus)


def check_judges(study: Study, *, offline: bool) -> Iterator[Check]:
    """Keys of the study's judges, and whether they answer; the toy world's own rules are always here."""
    judges = {judge: config for judge, config in study.judges.items() if not is_rule_judge(config)}
    answers = {} if offline else probe_all({judge: partial(check_judge, judge, judges[judge]) for judge in judges})
    for judge, config in judges.items():
        found = f"{judge}: {_key_found(config)}"
        unasked = Check("ok", "judge", f"{found}; not asked") if offline else _unreachable(f"{found}, its server")
        yield check_key(judge, config) or answers.get(judge, unasked)


def check_dvc(params: Params, name: str) -> Check:
    """What dvc.lock records of the study, without hashing anything: `dvc status` does that in seconds to minutes."""
    try:
        refuse_a_linked_folder()
    except UserError as error:
        found, _, remedy = str(error).partition("; ")
        return Check("fail", "DVC", found, remedy)
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
        f"suite {suite}": partial(load_suite, suite, data, study.seeds[0])
        for suite in study.suites
        if study.own_suite(suite) is None
    }
    parts = [part for run in params.runs_of(name).values() for part in run.parts]
    sets = dict.fromkeys(part.name for part in parts if part.name is not None)
    reads |= {f"training set {chosen}": partial(read_examples, chosen, data) for chosen in sets}
    own = {(part.file, part.sha256) for part in parts if part.file is not None}
    own |= {(suite.file, suite.sha256) for suite in study.own_suites}
    reads |= {f"your {file}": partial(verified, str(ROOT / file), digest, str(PARAMS)) for file, digest in sorted(own)}
    reads |= {
        f"judge {judge}'s prompts": partial(load_templates, ROOT / config.templates, config.templates_sha256)
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


def check_judge(judge: str, config: JudgeConfig) -> Check:
    """Ask the judge's endpoint for its list of models, which costs nothing; look for vllm where it is to serve it."""
    if config.serve is not None:
        try:
            program = find_vllm()[0]
        except UserError as error:
            found, _, remedy = str(error).partition(". ")
            return Check("fail", "judge", f"{judge}: {found}", remedy)
        return Check("ok", "judge", f"{judge}: {config.model} will be served by {program}")
    where = config.base_url or "https://api.openai.com/v1"
    try:
        key = read_key(config)
    except UserError:
        return Check("fail", "judge", judge)  # check_key says why
    code = http_status(f"{where.rstrip('/')}/models", key, "GET")
    found = f"{judge}: {_key_found(config)}, {urlsplit(where).netloc}"
    if code is None:
        return _unreachable(found)
    if code in (401, 403):
        where = config.api_key_env or "a variable, and name it in api_key_env"
        return Check("fail", "judge", f"{found} refuses it (HTTP {code})", f"put a valid key in {where}")
    return Check("ok", "judge", f"{found} answers")


def _unreachable(found: str) -> Check:
    return Check("warn", "judge", f"{found} cannot be reached", "the judge stage needs it; is it up, and the network?")


def _key_found(config: EndpointConfig) -> str:
    return "needs no key" if config.api_key_env is None else f"{config.api_key_env} is set (not shown)"


def check_plans(params: Params, name: str, gpus: tuple[Gpu, ...]) -> Iterator[Check]:
    """Each base's most demanding run against the first usable GPU: training and sampling."""
    gpu = next((gpu for gpu in gpus if gpu.capability >= AMPERE and gpu.memory), None)
    if gpu is None or params.study(name).training.precision == "float32":
        return
    memory = gpu.memory or 0
    try:
        plans = list(plan_runs(params, name, gpu_bytes=memory, host_bytes=memory_bytes(), rates=rates_of(gpu.name)))
    except UserError as error:
        yield Check("fail", "GPU memory", str(error))
        return
    for base in (base for base in params.bases_of(name) if base not in params.bases.api):
        mine = [plan for plan in plans if plan.base == base]
        refused = {plan.run: plan.trouble for plan in mine if plan.trouble is not None}
        if not mine:
            yield Check("warn", "GPU memory", f"{base}: cannot be planned before its config.json is in the cache")
        elif refused:
            run, why = next(iter(refused.items()))
            found = f"{base}: {len(refused)} of {len(mine)} runs have no plan. The first, {run}: {why}"
            yield Check("fail", "GPU memory", found, "use a GPU with more memory; the other runs can go on")
        else:
            peak, host = max(plan.peak for plan in mine), max(plan.host for plan in mine)
            kept = f", {host / GIB:.1f} GiB of weights in host memory" if host else ""
            yield Check("ok", "GPU memory", f"{base}: {peak / GIB:.1f} of {memory / GIB:.1f} GiB at most{kept}")


def check_more_cards(params: Params, name: str, gpus: tuple[Gpu, ...]) -> Iterator[Check]:
    """What several GPUs buy, by arithmetic: each does other runs, or all train each run together."""
    card, host = card_of(gpus), memory_bytes()
    count = sum(gpu.capability >= AMPERE for gpu in gpus)
    if card is None or count < 2:
        return
    study = params.study(name)
    shared = study.model_copy(update={"training": study.training.model_copy(update={"devices": count})})
    together = params.model_copy(update={"studies": {**params.studies, name: shared}})
    try:
        bases, split = (
            estimate_bases(these, name, card, plans_of_bases(these, name, card, host)) for these in (params, together)
        )
    except UserError:
        return  # said by check_plans
    kept = count * max((base.host_bytes for base in bases), default=0)
    fits = f"{kept / GIB:.0f} GiB of weights in host memory" if kept else "no weights in host memory"
    fits += "" if kept <= HOST_SHARE * host else ", more than there is"
    one, each = total_hours(bases), [hours / count for hours in total_hours(bases)]
    what = "the runs that have a plan" if any(base.refused for base in bases) else "the study"
    found = (
        f"{count}. By arithmetic: one takes {_hours(one)} for {what}; each at other runs (ENGINE=ray) {_hours(each)}"
    )
    if study.training.batch % count == 0 and [base.refused for base in split] == [base.refused for base in bases]:
        found += f"; all at each training (training.devices: {count}) {_hours(total_hours(split))}"
    yield Check("ok", "GPUs", found)


def _hours(hours: Sequence[float]) -> str:
    return f"{hours[0]:.1f} to {hours[1]:.1f} h"
