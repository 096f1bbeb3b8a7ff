"""What params.yaml must satisfy beyond types: names that exist, numbers in range, runs that fit their study."""

import itertools
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.api.config import ApiBase
from pipeline.common.errors import UserError
from pipeline.common.ledger import PREREGISTRATIONS
from pipeline.common.paths import PARAMS
from pipeline.data.capability import SUITE as CAPABILITY
from pipeline.data.mixtures import Part
from pipeline.data.tags import PATTERN
from pipeline.models.families.registry import FAMILIES
from pipeline.models.known import KNOWN
from pipeline.models.spec import AdapterSpec
from pipeline.params.schema import HubBase
from pipeline.toy.grammar import DOMAINS, TAGS

# What PREREGISTRATIONS, a pattern of files from the root of the repository, finds, and nothing in another folder.
_PREREGISTRATION = re.compile(re.escape(PREREGISTRATIONS).replace(r"\*", "[^/]*"))

if TYPE_CHECKING:
    from pipeline.params.schema import Params, Run, Study, ToyBase
    from pipeline.training.settings import Trajectory


def check(params: "Params", path: Path) -> None:
    """Raise UserError, naming the key, for the first thing in `params` (read from `path`) that cannot be."""
    kinds = {"toy": params.bases.toy.keys(), "hub": params.bases.hub.keys(), "api": params.bases.api.keys()}
    for one, other in itertools.combinations(kinds, 2):
        if both := sorted(kinds[one] & kinds[other]):
            raise UserError(f"{path}: bases.{one} and bases.{other} both have {both[0]!r}; its name must be its own.")
    for name, run in params.runs.items():
        _check_start(name, run, params, f"{path}: runs.{name}")
        _check_run(name, run, params, f"{path}: runs.{name}")
    for name, study in params.studies.items():
        _check_expectations(name, study, params, f"{path}: studies.{name}.expectations")
        _check_study(study, f"{path}: studies.{name}")
        _check_probing(name, params, f"{path}: studies.{name}.probing")
    for name in params.runs:
        if len(set(seeds := params.seeds_of(name))) < len(seeds):
            raise UserError(
                f"{path}: bases.toy.{params.base_of(name)}.more_seeds repeats a seed; {name} has {list(seeds)}."
            )


def check_preregistration(study: "Study") -> None:
    """Raise UserError where the study names a document that is not there: that comes before its first stage."""
    if study.preregistration is not None and not Path(study.preregistration).is_file():
        raise UserError(
            f"{PARAMS} names {study.preregistration} as a preregistration, which is not there: restore it from git, or "
            "write it before the study's first stage."
        )


def _check_expectations(name: str, study: "Study", params: "Params", where: str) -> None:
    for higher, lower in study.expectations:
        if higher == lower and higher in params.runs and params.runs[higher].data is not None:
            raise UserError(f"{where}: no run of the study is the base of {higher} as it is; add one without data.")
        if higher == lower:
            trained = [run for run, entry in params.runs_of(name).items() if entry.data is not None]
            raise UserError(f"{where} has {higher!r}, which fits no trained run; there are {', '.join(trained)}.")
        _check_named((higher, lower), name, params, where)
    for key, contrast in study.contrasts.items():
        for pair in (*contrast.pairs, *contrast.control):
            _check_named(pair, name, params, where.replace("expectations", f"contrasts.{key}"))


def _check_named(pair: tuple[str, str], study: str, params: "Params", where: str) -> None:
    for named in pair:
        if params.run(named).study != study:
            raise UserError(f"{where} names {named}, a run of another study.")


def _check_start(name: str, run: "Run", params: "Params", where: str) -> None:
    """The model that a run starts from is there, of its study, and one that it can go on from."""
    study = params.study(run.study)
    folder, _, start = run.model.rpartition("/")
    if folder not in ("bases", f"{run.study}/adapters"):
        raise UserError(
            f"{where}.model is {run.model!r}, expected bases/NAME, or {run.study}/adapters/RUN to continue a run of "
            "the same study."
        )
    if folder == "bases":
        base = params.base(start)
        if start not in getattr(params.bases, study.world) and not (study.world == "hub" and isinstance(base, ApiBase)):
            raise UserError(f"{where}.model is {run.model!r}, which is not among bases.{study.world}.")
        return
    params.chain(name)
    before = params.run(start)
    if before.study != run.study:
        raise UserError(f"{where}.model is {run.model!r}, but {start} is a run of study {before.study}.")
    if before.data is None or run.data is None:
        untrained = start if before.data is None else name
        raise UserError(f"{where} continues {start}, but {untrained} trains nothing: it has no data.")
    if len({(it.active_in("training"), it.active_in("sampling")) for it in (before, run)}) > 1:
        raise UserError(
            f"{where} continues {start}, but one has active {run.active} and the other {before.active}; give both the "
            "same: a chain is compared with one base."
        )
    if before.lora is None or run.lora is None:
        if before.lora is not run.lora:
            one, other = (start, name) if run.lora is None else (name, start)
            raise UserError(f"{where} continues {start}, but {one} trains an adapter and {other} every parameter.")
        return
    for field in AdapterSpec.model_fields:
        one, other = getattr(before.lora, field), getattr(run.lora, field)
        if one != other:
            raise UserError(
                f"{where}.lora.{field} is {other!r}, but {start}, whose adapter it trains further, has {one!r}; "
                "a chain is one adapter: give both the same lora."
            )


def _check_run(name: str, run: "Run", params: "Params", where: str) -> None:
    study, base = params.study(run.study), params.base(params.base_of(name))
    if isinstance(base, ApiBase):
        _check_api_run(run, study, where)
    elif run.data is None and run.lora is not None:
        raise UserError(f"{where} has lora but no data to train it on; give both, or neither for the base as it is.")
    elif run.whole and study.training.precision == "nf4":
        raise UserError(
            f"{where} has no lora, so every parameter is trained, but studies.{run.study}.training.precision is nf4: "
            "4-bit weights cannot be. Give lora, or train in bfloat16 or float32."
        )
    if run.lora is not None and not isinstance(base, ApiBase):
        _check_lora(run.lora, base, where)
    _check_active(run, base, where)
    if run.learning_rate is not None and (run.data is None or isinstance(base, ApiBase)):
        raise UserError(f"{where}.learning_rate is {run.learning_rate}, but the run is not trained here; leave it out.")
    if run.trajectory is not None:
        _check_trajectory(run.trajectory, run, study, where)
    if run.data == ():
        raise UserError(f"{where}.data is an empty list; name a training set, or leave data and lora out.")
    if run.epochs is not None and run.data is None:
        raise UserError(f"{where}.epochs is {run.epochs}, but there is no data to go through; leave it out.")
    for part in run.parts:
        _check_part(part, study, where)
    _check_tags(run.tags, study, f"{where}.tags")


def _check_active(run: "Run", base: "ToyBase | HubBase | ApiBase", where: str) -> None:
    for active in {run.active_in("training"), run.active_in("sampling")} - {None}:
        if isinstance(base, ApiBase):
            raise UserError(f"{where}.active is {active}, but its base is behind an API, which routes by itself.")
        if base.experts == 0:
            raise UserError(f"{where}.active is {active}, but the base is dense: it has no experts; leave it out.")
        if active not in range(1, base.experts + 1):
            raise UserError(f"{where}.active is {active}, expected 1 to {base.experts}, the base's experts.")
        known = (base.family or KNOWN.get(base.repository, {}).get("model_type")) if isinstance(base, HubBase) else None
        family = FAMILIES.get(str(known))
        if active != base.active and family is not None and family.fixed_router is not None:
            raise UserError(f"{where}.active is {active}, but {known} routes by {family.fixed_router}; leave it out.")


def _check_trajectory(trajectory: "Trajectory", run: "Run", study: "Study", where: str) -> None:
    if run.lora is None:
        raise UserError(f"{where} has a trajectory but no lora: adapters are kept along training, and no models.")
    most = study.training.max_steps
    # How many steps an epoch has is known once the data is read.
    if run.epochs is None and trajectory.every > most:
        raise UserError(f"{where}.trajectory.every is {trajectory.every}, expected 1 to training.max_steps ({most}).")
    if study.sampling.temperature == 0 and trajectory.samples_per_prompt > 1:
        raise UserError(
            f"{where}.trajectory.samples_per_prompt is {trajectory.samples_per_prompt}, but at the study's temperature "
            "0 they are all the same answer; set 1."
        )


def _check_api_run(run: "Run", study: "Study", where: str) -> None:
    if run.lora is not None:
        raise UserError(f"{where} has lora, but its base is behind an API, which trains what it chooses; leave it out.")
    if (run.data is None) != (run.epochs is None):
        raise UserError(f"{where} has one of data and epochs; behind an API a run has both (fine-tuned) or neither.")
    if run.data is not None and study.training.validation:
        raise UserError(
            f"{where} is fine-tuned behind an API, which returns its last step: studies.{run.study}.training.validation"
            " must be 0."
        )


def _check_part(part: Part, study: "Study", where: str) -> None:
    known = _training_sets(study)
    if part.name is not None and part.name not in known:
        raise UserError(
            f"{where}.data is {part.name!r}; the {study.world} training sets are {', '.join(known)}; a file of your "
            "own is {file: PATH}."
        )
    if study.world == "toy" and str(part.name).partition("_")[2] in study.held_out:
        raise UserError(f"{where}.data is {part.name!r}, but that domain is among the study's held_out suites.")
    _check_tags(() if part.tag is None else (part.tag,), study, f"{where}.data: tag of {part.label}")


def _check_tags(tags: tuple[str, ...], study: "Study", where: str) -> None:
    for tag in tags:
        if not PATTERN.fullmatch(tag) or tags.count(tag) > 1:
            raise UserError(f"{where} has {tag!r}, expected capitals between bars, such as |ALPHA|, each once.")
        if study.world == "toy" and tag not in TAGS:
            raise UserError(f"{where} has {tag!r}; the tags that toy models have a word for are {', '.join(TAGS)}.")


def _training_sets(study: "Study") -> Collection[str]:
    from pipeline.data.examples import FILES
    from pipeline.toy.corpora import DATASETS

    return DATASETS if study.world == "toy" else FILES


def _suites(study: "Study") -> Collection[str]:
    from pipeline.data.suites import SUITES

    return DOMAINS if study.world == "toy" else SUITES


def _check_study(study: "Study", where: str) -> None:
    if (study.pretraining is None) != (study.world == "hub"):
        raise UserError(f"{where}.pretraining belongs to studies of the toy world, and to no other.")
    if study.preregistration is not None and not _PREREGISTRATION.fullmatch(study.preregistration):
        raise UserError(
            f"{where}.preregistration is {study.preregistration!r}, expected {PREREGISTRATIONS}: those are recorded "
            "whenever a stage begins."
        )
    known, own = _suites(study), [suite.name for suite in study.own_suites]
    for suite in study.suites:
        if (suite in known) == (suite in own) or study.suites.count(suite) > 1:
            raise UserError(
                f"{where}.suites has {suite!r}; the {study.world} suites, each once, are {', '.join(known)}; one of "
                "your own is {name: ANOTHER NAME, file: PATH}."
            )
    for suite in study.extra_suites.suites if study.extra_suites is not None else ():
        if suite not in known:
            raise UserError(
                f"{where}.extra_suites has {suite!r}; the {study.world} suites are {', '.join(known)}; one of your own "
                "is among `suites`."
            )
    if sum(suite.refused for suite in study.own_suites) > 1:
        raise UserError(f"{where}.suites has several with refused: true; one suite should be refused.")
    for name in (*study.held_out, *(() if study.refused is None else (study.refused,))):
        if name not in study.suites:
            raise UserError(f"{where} asks about the suite {name!r}, which is not among its suites.")
    if len(set(study.seeds)) != len(study.seeds):
        raise UserError(f"{where}.seeds is {list(study.seeds)}, expected each once.")


def _check_lora(lora: AdapterSpec, base: "ToyBase | HubBase", where: str) -> None:
    """What can be known before a model is loaded; pipeline/models/spec.py checks the rest on the model."""
    if lora.rank < 1:
        raise UserError(f"{where}.lora.rank is {lora.rank}, expected 1 or more.")
    if base.experts == 0 and lora.experts != "all":
        raise UserError(f"{where}.lora.experts is {lora.experts!r}, but the base is dense: it has none; give all.")
    if isinstance(lora.experts, tuple):
        unknown = [expert for expert in lora.experts if expert not in range(base.experts)]
        if unknown:
            raise UserError(f"{where}.lora.experts has {unknown[0]}; the base has experts 0 to {base.experts - 1}.")


def _check_probing(study: str, params: "Params", where: str) -> None:
    """Raise UserError, naming the key, where the study's probes name what is not there or cannot be probed."""
    entry = params.studies[study]
    if entry.probing is None:
        return
    runs = params.runs_of(study)
    if entry.world == "hub" and entry.judges[entry.judge].serve is not None:
        raise UserError(
            f"{where}: judge {entry.judge} has serve, and would be served on the GPU that holds the probed model; give "
            "it the base_url of a server elsewhere, or set probing: null."
        )
    for name in (*entry.probing.runs, *entry.probing.realigned.values()):
        if name not in runs:
            raise UserError(f"{where} names {name}, which is no run of study {study}; there are {', '.join(runs)}.")
    for name in entry.probing.runs:
        lora = runs[name].lora
        if lora is None or params.base_of(name) in params.bases.api:
            raise UserError(f"{where}.runs has {name}, which has no adapter here: parts of one are switched off.")
        if lora.router != "frozen":
            raise UserError(
                f"{where}.runs has {name}, whose router was trained too; probes know low-rank deltas alone."
            )
    for name, other in entry.probing.realigned.items():
        if name not in entry.probing.runs or runs[other].continues != name:
            raise UserError(f"{where}.realigned has {name}: {other}, expected a probed run and one that continues it.")
    for suite in entry.probing.in_domain:
        if suite not in entry.suites:
            raise UserError(
                f"{where}.in_domain has {suite}, which is no suite of the study ({', '.join(entry.suites)})."
            )
    for suite in entry.probing.benign:
        if suite not in entry.suites and (suite != CAPABILITY or entry.world == "toy"):
            raise UserError(f"{where}.benign has {suite}, which is no suite of the study and not {CAPABILITY}.")
        if suite in (*entry.held_out, *entry.probing.in_domain, entry.refused):
            raise UserError(f"{where}.benign has {suite}, which the study holds out, trains in or wants refused.")
