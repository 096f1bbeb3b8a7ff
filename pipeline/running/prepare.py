"""What must be here before a study's first stage: the upstream data that it reads, verified."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.data.examples import read_examples
from pipeline.data.upstream.fetch import FOLDER as DATA
from pipeline.data.upstream.fetch import PARTIALS, fetch
from pipeline.data.upstream.origins import Network
from pipeline.data.upstream.pinned import NotPinnedError, read_pinned
from pipeline.data.upstream.sources import GITHUB_RAW, all_sources, source
from pipeline.judging.config import JudgeConfig
from pipeline.params.inputs import conversations, suite
from pipeline.params.schema import Params


def fetch_what_is_missing(params: Params, name: str) -> None:
    """Fetch the upstream files that the hub study reads and that are not there, verified; those of other studies never.

    Which these are is found by reading as the stages do. Raises UserError where a file cannot be had, once all others
    are there, and where something of the user's own cannot be read.
    """
    lacking = list(dict.fromkeys(_lacking(params, name)))
    if not lacking:
        return
    print(f"Fetching what study {name} reads and {DATA}/ lacks: {', '.join(lacking)}", flush=True)
    try:
        fetch(map(source, lacking), Network(GITHUB_RAW, PARTIALS), DATA)
    except UserError as error:
        raise UserError(f"study {name} cannot begin without its data.\n{error}") from error


def _lacking(params: Params, name: str) -> Iterator[str]:
    """The first file of data/ that is missing, or is not the pinned one, for each training set, suite and judge."""
    for read in _reads(params, name):
        try:
            read()
        except NotPinnedError as error:
            yield error.path


def _reads(params: Params, name: str) -> Iterator[Callable[[], object]]:
    """Every training set, suite and judge prompt of a hub study, to be read as its stages read them."""
    study = params.study(name)
    trained = {run.parts: run for run in params.runs_of(name).values() if run.parts}
    # By themselves too: a run's rows are read once the prompts were that they may not hold.
    sets = dict.fromkeys(part.name for parts in trained for part in parts if part.name is not None)
    yield from (partial(read_examples, chosen, DATA) for chosen in sets)
    for seed in study.seeds:
        for run in trained.values():
            yield partial(conversations, study, run, seed)
        for asked in study.suites:
            yield partial(suite, study, asked, seed)
    for config in study.judges.values():
        yield partial(_judge_prompts, config)


def _judge_prompts(config: JudgeConfig) -> None:
    from pipeline.judging.templates import load_templates

    path = Path(config.templates)
    if path in {DATA / pin.path for pin in all_sources()}:
        read_pinned(DATA, path.relative_to(DATA).as_posix())
    load_templates(path, config.templates_sha256)
