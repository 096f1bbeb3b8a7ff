"""Your own training files and suites are known by their SHA-256, beside their path in params.yaml.

The hash is written where there is none, and replaced where the file has changed: then the stages that read it run
again, and no others.
"""

import argparse

from pipeline.params.edit import pin_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no arguments."""


def main(args: argparse.Namespace) -> None:
    """Write the hashes."""
    for written in pin_files() or ["Every file in params.yaml is as its hash says."]:
        print(written)
