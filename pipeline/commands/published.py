"""Draw the authors' published numbers: tables and figures in paper_figures/published."""

import argparse
from pathlib import Path

from pipeline.audit.figures import draw


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    from pipeline.audit.published import FOLDER

    parser.add_argument("--published", type=Path, default=FOLDER, help="folder of the published numbers")
    parser.add_argument("--out", type=Path, default=Path("paper_figures/published"), help="folder to write to")


def main(args: argparse.Namespace) -> int:
    """Write every published table and figure and name them."""
    from pipeline.audit.cells import audit
    from pipeline.audit.published import read_published

    for path in draw(audit(read_published(args.published)), args.out):
        print(path)
    return 0
