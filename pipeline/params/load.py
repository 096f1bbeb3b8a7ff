"""Read params.yaml and check it."""

from pathlib import Path

from pipeline.common.building import build
from pipeline.common.files import read_yaml
from pipeline.common.paths import PARAMS
from pipeline.params.checks import check
from pipeline.params.schema import Params


def load_params(path: Path = PARAMS) -> Params:
    """Read and check params.yaml. Raises UserError naming the key that is wrong."""
    params = build(Params, read_yaml(path, "run this from the root of the repository"), str(path))
    check(params, path)
    return params
