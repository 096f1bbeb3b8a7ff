"""Fetch the upstream files of data/ and check every byte."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.data.upstream.fetch import FOLDER, PARTIALS, fetch
from pipeline.data.upstream.origins import Local, Network
from pipeline.data.upstream.sources import GITHUB_RAW, Source, all_sources


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files or folders of data/ (default: all)")
    parser.add_argument("--source", type=Path, metavar="DIR", help="take the files from this folder")
    parser.add_argument(
        "--mirror", default=GITHUB_RAW, metavar="URL", help="a server laid out like the default, %(default)s"
    )


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.source and not args.source.is_dir():
        raise UserError(f"--source {args.source} is not a folder; give one that is laid out like data/.")
    origin = Local(args.source) if args.source else Network(args.mirror, PARTIALS)
    fetch(select(args.paths), origin, FOLDER)
    return 0


def select(paths: Iterable[str]) -> tuple[Source, ...]:
    """The sources of the named files and folders of data/; all of them when none is named.

    Raises UserError for a name that is neither.
    """
    names = [path.removeprefix("data/").rstrip("/") for path in paths]
    for name in names:
        if not any(_is_in(pin, name) for pin in all_sources()):
            known = ", ".join(pin.path for pin in all_sources())
            raise UserError(f"data/ has no pinned file or folder {name!r}; the files are {known}.")
    return tuple(pin for pin in all_sources() if not names or any(_is_in(pin, name) for name in names))


def _is_in(pin: Source, name: str) -> bool:
    return pin.path == name or pin.path.startswith(f"{name}/")
