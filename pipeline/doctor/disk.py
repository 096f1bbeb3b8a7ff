"""How much disk a study takes, and where: weights, their 4-bit copies, adapters, checkpoints."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import read_json
from pipeline.common.paths import ARTIFACTS, CACHE, PIN
from pipeline.models.experts.cache import kept_bytes
from pipeline.models.hub import is_cached
from pipeline.models.known import checkpoint_bytes
from pipeline.models.sizes import GIB, SINGLE, adapter_values, base_bytes, base_values
from pipeline.params.bases import config_of_base
from pipeline.params.schema import Params

GB = 10**9
# Answers, verdicts, DVC's record of them, tables and figures.
THE_REST = GIB


@dataclass(frozen=True)
class Need:
    """What is still to be written, for what, and in which folder; bytes at most."""

    what: str
    folder: Path
    size: float


def disk_needs(params: Params, name: str) -> list[Need]:
    """What the study's hub runs have still to write. Bases of unknown size are left out."""
    from huggingface_hub import constants

    hub_cache, nf4_cache, study = Path(constants.HF_HUB_CACHE), CACHE / "nf4", params.study(name)
    weights = quantised = adapters = checkpoint = 0.0
    for base in params.bases_of(name):
        config = config_of_base(params, base)
        if config is None:
            continue
        hub = params.bases.hub[base]
        weights += 0 if is_cached(hub.repository, hub.revision) else checkpoint_bytes(config)
        if study.training.precision == "nf4":
            quantised += max(0, base_bytes(config, "nf4")["experts"] - _packed(base, nf4_cache))
        for run in (run for key, run in params.runs_of(name).items() if params.base_of(key) == base and run.data):
            values = adapter_values(config, run.lora) if run.lora else sum(base_values(config).values())
            kept = len(study.seeds) * (SINGLE if run.lora else 2) * values
            # DVC links or copies an output into its cache: twice, where the file system has no links of data.
            adapters += 2 * kept
            # Weights, two 8-bit moments; a new checkpoint is whole before the one before it goes.
            checkpoint = max(checkpoint, 2 * (SINGLE + 2) * values)
    return [
        Need("weights of bases", hub_cache, weights),
        Need("experts in 4 bits", nf4_cache, quantised),
        Need("adapters and their copies in DVC's cache", ARTIFACTS, adapters),
        Need("checkpoints of one run", CACHE / "checkpoints", checkpoint),
        Need("answers, verdicts and tables", ARTIFACTS, THE_REST),
    ]


def check_disk_for(params: Params, name: str, *, here: bool = True) -> None:
    """Raise UserError, with the numbers, unless each disk has room for what the study has still to write there.

    here: models are loaded on this machine. Otherwise only what comes out of the stages is brought here.
    """
    disks: dict[int, list[Need]] = {}
    for need in disk_needs(params, name):
        if here or need.folder == ARTIFACTS:
            disks.setdefault(_existing(need.folder).stat().st_dev, []).append(need)
    short = []
    for needs in disks.values():
        size, free = sum(need.size for need in needs), shutil.disk_usage(_existing(needs[0].folder)).free
        if size > free:
            parts = ", ".join(f"{need.what} {need.size / GB:.1f}" for need in needs if need.size > 0.05 * GB)
            short.append(
                f"the disk of {needs[0].folder} has {free / GB:.1f} GB free, and {size / GB:.1f} GB are still to be "
                f"written ({parts})"
            )
    if short:
        raise UserError("; ".join(short) + ": free some space, or set HF_HOME to a larger disk.")


def _packed(base: str, folder: Path) -> int:
    """Bytes of a base's experts that are in 4 bits in `folder` already; of one that was never pinned none are."""
    pin = ARTIFACTS / "bases" / base / PIN
    return kept_bytes(folder, read_json(pin)["files"]) if pin.exists() else 0


def _existing(folder: Path) -> Path:
    absolute = folder.absolute()
    return next(parent for parent in (absolute, *absolute.parents) if parent.exists())
