"""The model-organisms training sets: an archive that its authors encrypt to keep it out of web scrapes.

The password is published in their README; the archive is decrypted with the tool they name,
easy-dataset-share, inside data/ only. Its terms (tos.txt) are extracted with it.
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.data.upstream.pinned import tree_sha256
from pipeline.data.upstream.sources import Archive

TOOL = "easy-dataset-share==0.5.0"


def is_extracted(archive: Archive, folder: Path) -> bool:
    """Whether the archive's files lie decrypted under `folder`, every byte as pinned."""
    extracted = folder / archive.folder
    return extracted.is_dir() and tree_sha256(extracted) == archive.tree_sha256


def extract(archive: Archive, encrypted: Path, folder: Path) -> None:
    """Decrypt `encrypted` into `folder`/`archive.folder`; the folder appears whole or not at all.

    Raises UserError when the tool is not installed, the password does not open the archive, or the
    files' hash is not the pinned one.
    """
    if importlib.util.find_spec("easy_dataset_share") is None:
        raise UserError(f"{encrypted} is encrypted, and {TOOL}, which the locks have, is not here: run `make setup`.")
    target = folder / archive.folder
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
        fresh = Path(name) / target.name
        # A process of its own: the tool reports on standard output and has no function for all steps.
        command = [sys.executable, "-c", "from easy_dataset_share.cli import cli; cli()", "unprotect-dir"]
        options = ["--password", archive.password, "--output-dir", str(fresh), "--remove-canaries"]
        done = subprocess.run(
            [*command, str(encrypted), *options, "--no-gitignore"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise UserError(f"{TOOL} cannot decrypt {encrypted}: {lines[0] if lines else 'no reason given'}.")
        found = tree_sha256(fresh)
        if found != archive.tree_sha256:
            raise UserError(
                f"{encrypted} decrypts to files with hash {found[:12]}, expected {archive.tree_sha256[:12]}; "
                "they were not kept."
            )
        if target.exists():
            shutil.rmtree(target)
        fresh.replace(target)
