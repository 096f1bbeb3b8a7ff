"""The JSON schema of params.yaml, by which editors complete and check it as it is typed.

    mkdir -p .cache && python -m pipeline schema > .cache/params.schema.json

The first line of params.yaml points yaml-language-server (VS Code, Neovim, Emacs) to that file.
"""

import argparse
import json
from typing import Any

from pipeline.params.schema import Params


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no arguments."""


def main(args: argparse.Namespace) -> None:
    """Print the schema."""
    print(json.dumps(json_schema(), indent=2, sort_keys=True))


def json_schema() -> dict[str, Any]:
    """The schema of the file as it is written: before rules and defaults (pipeline/params/expand.py) fill it in."""
    schema = Params.model_json_schema(mode="validation")
    kinds = schema["$defs"]
    study, run = kinds["Study"]["properties"], kinds["Run"]["properties"]
    own = study.pop("own_suites")["items"]
    study["suites"]["items"] = {"anyOf": [{"type": "string"}, own]}
    pattern = {"type": "string", "description": "a run, or a pattern of runs, each above its base"}
    study["expectations"]["items"] = {"anyOf": [study["expectations"]["items"], pattern]}
    # A base in a folder has that in place of a repository.
    kinds["HubBase"]["required"].remove("repository")
    # A run's lora has the keys that differ from its study's default.
    partial = {key: value for key, value in kinds["AdapterSpec"].items() if key != "required"}
    kinds["RunAdapter"] = partial
    run["lora"] = {"anyOf": [{"$ref": "#/$defs/RunAdapter"}, {"type": "null"}], "default": None}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
