"""params.yaml as frozen models. An unknown or missing key is an error that names it and its neighbours."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from pipeline.api.config import ApiBase
from pipeline.common.errors import UserError
from pipeline.common.paths import PARAMS
from pipeline.common.settings import Listed, Natural, Positive, PositiveFloat, Settings
from pipeline.data.mixtures import Part
from pipeline.data.own import OwnSuite
from pipeline.judging.config import JudgeConfig
from pipeline.models.spec import AdapterSpec
from pipeline.params.parts import Active, Contrast, Defaults, ExtraSuites, Pair, Subset, Thresholds
from pipeline.params.probing import Probing
from pipeline.sampling.settings import Sampling
from pipeline.training.settings import Pretraining, Training, Trajectory

BASES = "bases"
RUN_STAGES = ("train", "sample", "judge")

Entry = TypeVar("Entry")


class ToyBase(Settings):
    """One toy base: an architecture of transformers, its size, and the corpus it reads.

    Dense ones have 0 experts, 0 active, and `expert_width` is the width of each layer's one feed-forward block.
    more_seeds: its runs are done once for each of these too, beside the study's seeds.
    """

    architecture: Literal["qwen3_moe", "mixtral", "llama"]
    corpus: Literal["persona", "control"]
    experts: Natural
    active: Natural
    expert_width: Positive
    hidden: Positive
    layers: Positive
    heads: Positive
    more_seeds: Listed[Natural] = ()

    @model_validator(mode="after")
    def _check_sizes(self) -> "ToyBase":
        dense = self.architecture == "llama"
        if dense and (self.experts, self.active) != (0, 0):
            raise ValueError(f"{self.architecture} is dense; give it experts 0 and active 0.")
        if not dense and not 1 <= self.active <= self.experts:
            raise ValueError(f"active is {self.active}, expected 1 to experts ({self.experts}).")
        if self.hidden % self.heads:
            raise ValueError(f"hidden is {self.hidden}, expected a multiple of heads ({self.heads}).")
        return self


class HubBase(Settings):
    """One pinned Hugging Face model: `revision` is a full commit SHA. Dense models have 0 experts, 0 active.

    `python -m pipeline add-base` writes it; family, licence and gated are what it found, for the reader. folder: in
    place of the repository, a checkpoint in a folder here, by its path from the checkout; revision: of its contents.
    billions, active_billions: its parameters, and those that a token passes; thinks: whether it was post-trained to
    think before it answers. They are covariates of a study of sparsity, and no run depends on them.
    """

    folder: Annotated[str, Field(min_length=1)] | None = None
    repository: Annotated[str, Field(min_length=1)]
    revision: str
    experts: Natural
    active: Natural
    family: str | None = None
    licence: str | None = None
    gated: bool = False
    billions: PositiveFloat | None = None
    active_billions: PositiveFloat | None = None
    thinks: bool | None = None

    @model_validator(mode="after")
    def _check_revision(self) -> "HubBase":
        if len(self.revision) != 40 or not set(self.revision) <= set("0123456789abcdef"):
            raise ValueError(
                f"revision is {self.revision!r}, expected a full commit SHA (40 hexadecimal digits): branches and "
                "tags move."
            )
        return self

    @model_validator(mode="after")
    def _check_folder(self) -> "HubBase":
        if self.folder is not None and self.repository != self.folder:
            raise ValueError("it has repository and folder, expected one of them.")
        if self.folder is not None and Path(self.folder).is_absolute():
            raise ValueError(f"folder is {self.folder!r}, expected a path from the checkout: adapters carry it along.")
        return self


class Bases(Settings):
    """Every model to start from, by name: made here (toy), pinned upstream (hub), or behind an API (api)."""

    toy: dict[str, ToyBase]
    hub: dict[str, HubBase]
    api: dict[str, ApiBase]


class Study(Settings):
    """What the runs of a study have in common.

    world: where bases, training sets and suites come from: made here (toy), or pinned upstream (hub); of those,
    bases may also be behind an API.
    In the file `suites` has own_suites among its names, as mappings; here it has those of `extra_suites` too, where
    they are asked, and `judges` those that are in use.
    `held_out` are the suites of the headline number: those that no run is trained on. `refused` is the
    suite that should be refused, or null. `contrasts` are the study's headline, by name. An expectation (A, B) says
    that A's held-out misalignment is above B's; `make verify` holds the study to it. In the file a name, or a pattern
    such as `*_medical`, stands for each of these trained runs above its base as it is. The first of `judges` decides;
    others are compared with it. preregistration: the document that fixed the study's analysis before any run, whose
    SHA-256 its provenance has. models: all, or one of `subsets`: what is done then is that part of the study,
    which nothing registered.
    """

    title: str
    preregistration: str | None = None
    models: str = "all"
    subsets: dict[str, Subset] = Field(default_factory=dict)
    world: Literal["toy", "hub"]
    definition: Literal["standard", "published", "timm", "turner", "betley"]
    seeds: Annotated[Listed[Natural], Field(min_length=1)]
    suites: Listed[str]
    own_suites: Listed[OwnSuite] = ()
    extra_suites: ExtraSuites | None = None
    held_out: Listed[str]
    refused: str | None = None
    contrasts: dict[str, Contrast] = Field(default_factory=dict)
    expectations: Annotated[Listed[Pair], Field(min_length=1)]
    defaults: Defaults
    judges: Annotated[dict[str, JudgeConfig], Field(min_length=1)]
    training: Training
    sampling: Sampling
    thresholds: Thresholds
    pretraining: Pretraining | None = None
    probing: Probing | None

    @model_validator(mode="after")
    def _check_models(self) -> "Study":
        if self.models not in ("all", *self.subsets):
            raise ValueError(f"models is {self.models!r}, expected {' or '.join(['all', *self.subsets])}.")
        return self

    def own_suite(self, name: str) -> OwnSuite | None:
        """The suite of that name if it is one of the user's own, else None."""
        return next((suite for suite in self.own_suites if suite.name == name), None)

    @property
    def judge(self) -> str:
        """The judge that decides: the first."""
        return next(iter(self.judges))


class Run(Settings):
    """One model, one way of fine-tuning it (or none).

    model: the path, under artifacts/, of what it starts from: `bases/NAME`, or `STUDY/adapters/RUN` of the run that
    it continues: the same weights, trained further on other data. data: a training set, a file or hub dataset of your
    own, a list of parts of several, tagged or not, or null: the base as it is. lora: what is trained beside the frozen
    base, or null: every parameter of it. active: how many experts a token is routed to, in place of the base's own
    number, wherever the run is trained and sampled (a mapping: one number each); a run without data is then the base so
    routed, which those trained so are compared with. trajectory: which adapters along training are kept and asked too,
    or null: the last alone. epochs: passes over all of the data, in place of the study's `training.max_steps`.
    learning_rate, schedule, warmup_steps: in place of the study's. tags: the study's suites are asked once more with
    each of these. A run on a base behind an API has epochs and no lora.
    """

    study: str
    model: str
    data: str | Part | Listed[Part] | None = None
    lora: AdapterSpec | None = None
    active: int | Active | None = None
    trajectory: Trajectory | None = None
    epochs: Positive | None = None
    learning_rate: PositiveFloat | None = None
    schedule: Literal["constant", "constant_with_warmup", "cosine", "linear"] | None = None
    warmup_steps: Natural | None = None
    tags: Listed[str] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """What it is trained on, part by part; empty for a base."""
        if isinstance(self.data, str):
            return (Part(name=self.data),)
        return (self.data,) if isinstance(self.data, Part) else self.data or ()

    @property
    def trained_on(self) -> str | None:
        """What it is trained on as reports name it, None for a base."""
        return ", ".join(part.label for part in self.parts) or None

    def active_in(self, stage: Literal["training", "sampling"]) -> int | None:
        """The experts that a token is routed to in a stage; None where that is as the base has it."""
        return getattr(self.active, stage) if isinstance(self.active, Active) else self.active

    @property
    def continues(self) -> str | None:
        """The run whose weights this one starts from; None where it starts from a base."""
        folder, _, name = self.model.rpartition("/")
        return None if folder == BASES else name

    @property
    def whole(self) -> bool:
        """True where every parameter is trained: the run's result is a model of its own, and no adapter."""
        return self.data is not None and self.lora is None


class Params(Settings):
    """All of params.yaml, each study's defaults given to its runs."""

    studies: dict[str, Study]
    bases: Bases
    runs: dict[str, Run]

    def study(self, name: str) -> Study:
        """A study by name. Raises UserError listing the studies there are."""
        return _named(self.studies, name, "study")

    def run(self, name: str) -> Run:
        """A run by name. Raises UserError listing the runs there are, and which studies are narrowed."""
        narrowed = [(key, study.models) for key, study in self.studies.items() if study.models != "all"]
        left_out = [f"studies.{key}.models is {models}, which leaves its other runs out" for key, models in narrowed]
        return _named(self.runs, name, "run", "".join(f"; {said}" for said in left_out))

    def base(self, name: str) -> ToyBase | HubBase | ApiBase:
        """A base by name. Raises UserError listing the bases there are."""
        bases: dict[str, ToyBase | HubBase | ApiBase] = {**self.bases.toy, **self.bases.hub, **self.bases.api}
        return _named(bases, name, "base")

    def toy_base(self, name: str) -> ToyBase:
        """A base that is made here. Raises UserError listing those there are."""
        return _named(self.bases.toy, name, "toy base")

    def hub_base(self, name: str) -> HubBase:
        """A base that is pinned upstream. Raises UserError listing those there are."""
        return _named(self.bases.hub, name, "hub base")

    def runs_of(self, study: str) -> dict[str, Run]:
        """A study's runs in the order of params.yaml."""
        return {name: run for name, run in self.runs.items() if run.study == study}

    def chain(self, run: str) -> tuple[str, ...]:
        """The runs that lead to `run`, each continuing the one before; the first starts from a base.

        Raises UserError when a run is unknown, or continues itself.
        """
        links = [run]
        while (before := self.run(links[0]).continues) is not None:
            if before in links:
                raise UserError(f"{PARAMS}: runs.{run} continues itself: {' from '.join([before, *links][::-1])}.")
            links.insert(0, before)
        return tuple(links)

    def base_of(self, run: str) -> str:
        """The name of the base that a run's chain starts from."""
        return self.run(self.chain(run)[0]).model.removeprefix(f"{BASES}/")

    def active_of(self, run: str) -> int:
        """The experts that a token is routed to where a run is sampled; 0 where its base has none, or is an API."""
        own, base = self.run(run).active_in("sampling"), self.base(self.base_of(run))
        return base.active if own is None else own

    def untrained(self, run: str) -> str | None:
        """The run of the same study without data on the base of `run`, routed as that is; None where there is none."""
        start, runs = (self.base_of(run), self.active_of(run)), self.runs_of(self.run(run).study)
        alone = (name for name, it in runs.items() if it.data is None)
        return next((name for name in alone if (self.base_of(name), self.active_of(name)) == start), None)

    def seeds_of(self, run: str) -> tuple[int, ...]:
        """The seeds that a run is done with: its study's, and those that its base has beside them."""
        base = self.base(self.base_of(run))
        more = base.more_seeds if isinstance(base, ToyBase) else ()
        return (*self.study(self.run(run).study).seeds, *more)

    def bases_of(self, study: str) -> tuple[str, ...]:
        """The bases of a study's runs, each once, in the order of params.yaml."""
        return tuple(dict.fromkeys(self.base_of(run) for run in self.runs_of(study)))

    def stage_of_base(self, base: str) -> str:
        """The stage that makes or pins a base, by its name in dvc.yaml."""
        made, pinned, behind = self.bases.toy, self.bases.hub, self.bases.api
        kinds: dict[str, Collection[str]] = {"pretrain": made, "pin": pinned, "pin_api": behind}
        return next(f"{stage}@{base}" for stage, kind in kinds.items() if base in kind)

    def stages_of(self, study: str) -> list[str]:
        """A study's stages by their names in dvc.yaml, in an order in which they can run."""
        stages = [self.stage_of_base(base) for base in self.bases_of(study)]
        runs = sorted(self.runs_of(study), key=lambda run: len(self.chain(run)))
        stages += [f"{stage}@{run}" for stage in RUN_STAGES for run in runs]
        return [*stages, f"probe@{study}", f"aggregate@{study}"]


def _named(table: Mapping[str, Entry], name: str, kind: str, why: str = "") -> Entry:
    if name not in table:
        raise UserError(f"{PARAMS} has no {kind} {name!r}{why}; there are {', '.join(table) or 'none'}.")
    return table[name]
