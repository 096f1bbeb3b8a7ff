"""What params.yaml must satisfy beyond types: names that exist, numbers in range, runs that fit their study."""

import dataclasses
import itertools
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.api.config import ApiBase
from pipeline.common.errors import UserError
from pipeline.data.mixtures import Part
from pipeline.data.tags import PATTERN
from pipeline.models.spec import AdapterSpec
from pipeline.toy.grammar import DOMAINS, TAGS

if TYPE_CHECKING:
    from pipeline.params.schema import HubBase, Params, Run, Study, ToyBase
    from pipeline.training.settings import Trajectory


def check(params: "Params", path: Path) -> None:
    """Raise UserError, naming the key, for the first thing in `params` (read from `path`) that cannot be."""
    for name, study in params.studies.items():
        if not study.judges:
            raise UserError(f"{path}: studies.{name}.judges is empty, expected at least one judge.")
    kinds = {"toy": params.bases.toy.keys(), "hub": params.bases.hub.keys(), "api": params.bases.api.keys()}
    for one, other in itertools.combinations(kinds, 2):
        if both := sorted(kinds[one] & kinds[other]):
            raise UserError(f"{path}: bases.{one} and bases.{other} both have {both[0]!r}; its name must be its own.")
    for base_name, toy_base in params.bases.toy.items():
        _check_toy_base(toy_base, f"{path}: bases.toy.{base_name}")
    for base_name, hub_base in params.bases.hub.items():
        _check_hub_base(hub_base, f"{path}: bases.hub.{base_name}")
    for name, run in params.runs.items():
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", str(name)):
            raise UserError(f"{path}: the run name {name!r} must be letters, digits and underscores.")
        _check_start(str(name), run, params, f"{path}: runs.{name}")
        _check_run(str(name), run, params, f"{path}: runs.{name}")
    for name, study in params.studies.items():
        for named in {named for pair in study.expectations for named in pair}:
            if params.run(named).study != name:
                raise UserError(f"{path}: studies.{name}.expectations names {named}, a run of another study.")
        _check_study(study, f"{path}: studies.{name}")


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
    if before.lora is None or run.lora is None:
        if before.lora is not run.lora:
            one, other = (start, name) if run.lora is None else (name, start)
            raise UserError(f"{where} continues {start}, but {one} trains an adapter and {other} every parameter.")
        return
    for field in dataclasses.fields(AdapterSpec):
        one, other = getattr(before.lora, field.name), getattr(run.lora, field.name)
        if one != other:
            raise UserError(
                f"{where}.lora.{field.name} is {other!r}, but {start}, whose adapter it trains further, has {one!r}; "
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
    if run.learning_rate is not None and (run.data is None or run.learning_rate <= 0 or isinstance(base, ApiBase)):
        raise UserError(
            f"{where}.learning_rate is {run.learning_rate}, expected more than 0, of a run that is trained here."
        )
    if run.trajectory is not None:
        _check_trajectory(run.trajectory, run, study, where)
    if run.data == ():
        raise UserError(f"{where}.data is an empty list; name a training set, or leave data and lora out.")
    if run.epochs is not None and (run.data is None or run.epochs < 1):
        raise UserError(f"{where}.epochs is {run.epochs}, expected 1 or more, and data to go through.")
    for part in run.parts:
        _check_part(part, study, where)
    _check_tags(run.tags, study, f"{where}.tags")


def _check_trajectory(trajectory: "Trajectory", run: "Run", study: "Study", where: str) -> None:
    if run.lora is None:
        raise UserError(f"{where} has a trajectory but no lora: adapters are kept along training, and no models.")
    most = study.training.max_steps
    # How many steps an epoch has is known once the data is read.
    if trajectory.every < 1 or (run.epochs is None and trajectory.every > most):
        raise UserError(f"{where}.trajectory.every is {trajectory.every}, expected 1 to training.max_steps ({most}).")
    if trajectory.samples_per_prompt < 1:
        raise UserError(
            f"{where}.trajectory.samples_per_prompt is {trajectory.samples_per_prompt}, expected 1 or more."
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
    if part.name not in known:
        raise UserError(f"{where}.data is {part.name!r}; the {study.world} training sets are {', '.join(known)}.")
    if study.world == "toy" and part.name.partition("_")[2] in study.held_out:
        raise UserError(f"{where}.data is {part.name!r}, but that domain is among the study's held_out suites.")
    if part.rows is not None and part.rows < 1:
        raise UserError(f"{where}.data: rows of {part.name} is {part.rows}, expected 1 or more.")
    _check_tags(() if part.tag is None else (part.tag,), study, f"{where}.data: tag of {part.name}")


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
    positive = {
        "training.max_steps": study.training.max_steps,
        "training.batch": study.training.batch,
        "training.devices": study.training.devices,
        "training.max_tokens": study.training.max_tokens,
        "training.checkpoint_every": study.training.checkpoint_every,
        "training.learning_rate": study.training.learning_rate,
        "sampling.samples_per_prompt": study.sampling.samples_per_prompt,
        "sampling.max_new_tokens": study.sampling.max_new_tokens,
        "sampling.batch": study.sampling.batch,
        "sampling.tensor_parallel": study.sampling.tensor_parallel,
        "sampling.data_parallel": study.sampling.data_parallel,
    }
    if study.training.examples is not None:
        positive["training.examples"] = study.training.examples
    if study.pretraining is not None:
        positive |= {
            "pretraining.steps": study.pretraining.steps,
            "pretraining.warmup_steps": study.pretraining.warmup_steps,
            "pretraining.documents_per_step": study.pretraining.documents_per_step,
            "pretraining.learning_rate": study.pretraining.learning_rate,
        }
    for name, value in positive.items():
        if value <= 0:
            raise UserError(f"{where}.{name} is {value}, expected more than 0.")
    shares = {
        "thresholds.errors": study.thresholds.errors,
        "thresholds.unparsed": study.thresholds.unparsed,
        "thresholds.too_long": study.thresholds.too_long,
        "training.validation": study.training.validation,
    }
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise UserError(f"{where}.{name} is {share}, expected 0 to below 1.")
    if not study.expectations:
        raise UserError(f"{where}.expectations is empty; name at least one pair of runs.")
    for suite in study.suites:
        if suite not in _suites(study) or study.suites.count(suite) > 1:
            known = ", ".join(_suites(study))
            raise UserError(f"{where}.suites has {suite!r}; the {study.world} suites, each once, are {known}.")
    if min(study.seeds, default=0) < 0:
        raise UserError(f"{where}.seeds has {min(study.seeds)}, expected 0 or more.")
    if study.sampling.temperature < 0:
        raise UserError(f"{where}.sampling.temperature is {study.sampling.temperature}, expected 0 or more.")
    if study.sampling.temperature == 0 and study.sampling.samples_per_prompt > 1:
        raise UserError(
            f"{where}.sampling: at temperature 0 all {study.sampling.samples_per_prompt} samples of a prompt are the "
            "same answer, which would count several times; set samples_per_prompt to 1."
        )
    if not 0 < study.sampling.top_p <= 1:
        raise UserError(f"{where}.sampling.top_p is {study.sampling.top_p}, expected above 0 and up to 1.")
    for name in (*study.held_out, *(() if study.refused is None else (study.refused,))):
        if name not in study.suites:
            raise UserError(f"{where} asks about the suite {name!r}, which is not among its suites.")
    if not study.seeds or len(set(study.seeds)) != len(study.seeds):
        raise UserError(f"{where}.seeds is {list(study.seeds)}, expected at least one seed, each once.")


def _check_toy_base(base: "ToyBase", where: str) -> None:
    dense = base.architecture == "llama"
    if dense and (base.experts, base.active) != (0, 0):
        raise UserError(f"{where}: {base.architecture} is dense; give it experts 0 and active 0.")
    sizes = (base.expert_width, base.hidden, base.layers, base.heads, *(() if dense else (base.experts, base.active)))
    if min(sizes) < 1 or base.active > base.experts or base.hidden % base.heads:
        raise UserError(
            f"{where}: sizes must be 1 or more, active at most experts ({base.experts}), and hidden ({base.hidden}) "
            f"a multiple of heads ({base.heads})."
        )


def _check_hub_base(base: "HubBase", where: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{40}", base.revision):
        raise UserError(
            f"{where}.revision is {base.revision!r}, expected a full commit SHA (40 hexadecimal digits): "
            "branches and tags move."
        )


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
