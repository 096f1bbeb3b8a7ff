"""SHA-256 of large files, computed once and kept: a base of 93 GB is read for each of its runs otherwise.

As git does with its index, a hash is believed while size, inode and both times of the file are what they were. The time
of change (ctime) cannot be set back by a program that writes to a file, whatever it does to the time of modification.
A file that changed less than `RACY_NS` before it was hashed is hashed again next time: within one tick of the file
system's clock, a later change would show in nothing.
"""

import time
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import read_json, sha256_file, sha256_json, write_json
from pipeline.common.paths import CACHE

RACY_NS = 2 * 10**9
FOLDER = CACHE / "hashes"


def kept_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, from what is kept of it where the file is still the same."""
    resolved = path.resolve()
    kept = FOLDER / f"{sha256_json(str(resolved))}.json"
    state = file_state(resolved)
    if kept.exists():
        try:
            known = read_json(kept)
            if known["state"] == state:
                return str(known["sha256"])
        except (UserError, KeyError, TypeError):
            kept.unlink(missing_ok=True)  # cut short, or another version's: made again below
    began = time.time_ns()
    digest = sha256_file(resolved)
    if file_state(resolved) != state:
        raise UserError(f"{resolved} changed while it was read; end what writes to it, and run this again.")
    if began - state["ctime_ns"] > RACY_NS:
        write_json(kept, {"path": str(resolved), "state": state, "sha256": digest})
    return digest


def file_state(path: Path) -> dict[str, int]:
    """What a file's bytes have not changed without."""
    stat = path.stat()
    return {
        "device": stat.st_dev,
        "inode": stat.st_ino,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
    }
