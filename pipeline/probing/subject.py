"""A run's fine-tuned model of one seed, loaded once, and everything that it is asked under every intervention."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.fingerprints import code_hashes
from pipeline.common.paths import CACHE, PARAMS
from pipeline.common.rows import Answer
from pipeline.data.prompts import Prompt
from pipeline.models.anatomy import Anatomy
from pipeline.models.families.registry import anatomy_of
from pipeline.models.tokenizer import load_tokenizer
from pipeline.params.schema import Study
from pipeline.probing.interventions import Intervention, applied, units_of
from pipeline.probing.reading import Text
from pipeline.probing.texts import texts_of
from pipeline.sampling.answers import answer_rows, requests_of
from pipeline.sampling.backend import Completion, Model, Request
from pipeline.sampling.cache import complete_all
from pipeline.sampling.chat import Chat
from pipeline.sampling.huggingface import HuggingFace
from pipeline.sampling.key import identity


class Subject:
    """One seed's model of a run. `run` names it in the rows; answers and their cache are as those of stage sample."""

    def __init__(self, study: Study, run: str, seed: int, model: Model) -> None:
        self.study, self.run, self.seed, self.model = study, run, seed, model
        self._backend = HuggingFace(study.sampling)
        self._chat = Chat(model.base.path, study.sampling.system)
        self._tokenizer = load_tokenizer(model.base.path)
        self._key = identity(self._backend, model, study.sampling) | code_hashes("probing/interventions.py")

    def plan(self, prompts: Sequence[Prompt]) -> None:
        """Plan the memory that `prompts` take, before the model is loaded: how it is held is decided once."""
        self._backend.together(self.model, self._requests(prompts))

    @property
    def loaded(self) -> Any:
        """The model itself, with its adapter on."""
        return self._backend.load(self.model)

    @property
    def anatomy(self) -> Anatomy:
        """The model's parts, counted."""
        return anatomy_of(self.loaded.config)

    @property
    def units(self) -> tuple[Any, ...]:
        """Every unit of the adapter. Raises UserError, naming the run, where it has some that probes do not know."""
        try:
            return units_of(self.loaded)
        except UserError as error:
            raise UserError(f"{PARAMS}: probing.runs of a study has {self.run}, but {error}") from None

    @property
    def pad(self) -> int:
        """The token that fills batches."""
        return self._chat.pad

    def answers(self, changes: Sequence[Intervention], prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer to each prompt under each intervention; a row's `run` is RUN+INTERVENTION.

        The same random numbers are used under every intervention: what differs between two answers is the model.
        """
        requests = self._requests(prompts)
        rows: list[Answer] = []
        for change in changes:
            completions = complete_all(
                requests,
                self._backend.together(self.model, requests),
                self._key | {"intervention": change.identity},
                CACHE / "answers",
                lambda batches, change=change: self._complete(batches, change),  # type: ignore[misc]
            )
            rows += answer_rows(f"{self.run}+{change.name}", self.seed, requests, completions)
        return rows

    def _requests(self, prompts: Sequence[Prompt]) -> list[Request]:
        return requests_of(self.run, self.seed, [replace(it, samples=1) for it in prompts], 1)

    def _complete(
        self, batches: Sequence[list[Request]], change: Intervention
    ) -> Iterator[tuple[int, list[Completion]]]:
        with applied(self.loaded, change):
            yield from self._backend.complete(self.model, batches)

    def texts(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Text]:
        """Prompts with the answers given to them, as tokens."""
        return texts_of(self._tokenizer, self._chat, prompts, answers)
