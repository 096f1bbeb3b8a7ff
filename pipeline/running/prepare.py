"""What must be here before a study's first stage: verified upstream data."""

from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.data.upstream.fetch import FOLDER as DATA
from pipeline.data.upstream.fetch import PARTIALS, fetch
from pipeline.data.upstream.origins import Network
from pipeline.data.upstream.sources import GITHUB_RAW, all_sources
from pipeline.params.inputs import conversations, suite
from pipeline.params.schema import Params


def check_data(params: Params, name: str) -> None:
    """Raise UserError unless every training set, suite and judge prompt of a hub study is there and verified."""
    from pipeline.judging.templates import load_templates

    study = params.study(name)
    for seed in study.seeds:
        for run in {run.parts: run for run in params.runs_of(name).values() if run.parts}.values():
            conversations(study, run, seed)
        for asked in study.suites:
            suite(study, asked, seed)
    for config in study.judges.values():
        load_templates(Path(config.templates), config.templates_sha256)


def fetch_what_is_missing(params: Params, name: str) -> None:
    """Fetch the upstream files, unless all that the study reads is there and verified."""
    try:
        check_data(params, name)
    except UserError as error:
        print(f"{error}\nFetching.", flush=True)
        fetch(all_sources(), Network(GITHUB_RAW, PARTIALS), DATA)
