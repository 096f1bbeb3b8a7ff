"""The environment variables that a stage starts with: what it needs, and nothing that happens to be set.

Libraries read hundreds of variables, and many change results or break a run when they are left over from another
job: ACCELERATE_MIXED_PRECISION, LOCAL_RANK, OMPI_*, GIT_DIR, OPENAI_ORG_ID, MKL_*, OMP_*. So a stage keeps an
allow-list, and the ledger names what was removed.
"""

import os
import re
from fnmatch import fnmatchcase

from pipeline.common.numerics import kernels, pin_kernels
from pipeline.common.paths import PARAMS

# Which stage this process, or one that it starts, belongs to.
STAGE = "EMOE_STAGE"
# The process of `dvc repro` that a stage ends with.
DVC_PROCESS = "EMOE_DVC"
_KEPT = (
    # who, where, in which language; how Python starts
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "TMPDIR", "TMP", "TEMP", "TZ", "LANG", "LANGUAGE", "LC_*",
    "TERM", "COLUMNS", "LINES", "NO_COLOR", "XDG_*", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONUTF8",
    "PYTHONIOENCODING", "PYTHONWARNINGS", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONHASHSEED",
    # what the system's libraries are found by, and which GPUs may be used
    "LD_LIBRARY_PATH", "DYLD_*", "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_*",
    # the network, the Hugging Face hub and its cache
    "[hH][tT][tT][pP]_[pP][rR][oO][xX][yY]", "[hH][tT][tT][pP][sS]_[pP][rR][oO][xX][yY]",
    "[aA][lL][lL]_[pP][rR][oO][xX][yY]", "[nN][oO]_[pP][rR][oO][xX][yY]", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC", "HF_*", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_CACHE",
    "DO_NOT_TRACK",
    # how vLLM uses this machine (memory, compilers, caches), DVC, and this project's own
    "VLLM_CPU_*", "VLLM_CACHE_ROOT", "VLLM_USE_FLASHINFER_SAMPLER", "TRITON_CACHE_DIR", "TOKENIZERS_PARALLELISM",
    "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_MODE", "WANDB_PROJECT", "TRACKIO_DIR",  # EMOE_REPORT_TO
    "DVC_*", "EMOE_*", "GIT_CONFIG_*", "GIT_CEILING_DIRECTORIES",
)  # fmt: skip
_KEY_NAME = re.compile(r"\bapi_key_env:\s*[\"']?(\w+)")


def prepare_stage(stage: str) -> list[str]:
    """Give this process a stage's environment: scrubbed, kernels pinned, stdin closed; the names that were removed."""
    from pipeline.common.processes import mark

    removed = scrub()
    os.environ[STAGE] = f"{stage} {mark()}"
    pin_kernels()
    # Nothing may ask a question here: transformers would run a repository's own code for a typed `y`.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    return removed


def started_by(stage: str) -> int | None:
    """The process that does `stage` and started this one as a part of it (one of torchrun's ranks), or None."""
    from pipeline.common.processes import marked_ancestor

    name, _, marked = os.environ.get(STAGE, "").partition(" ")
    return marked_ancestor(marked) if name == stage else None


def scrub() -> list[str]:
    """Remove the variables that no stage needs from this process; return their names, sorted."""
    kept = (*_KEPT, *key_names())
    pinned = kernels()
    removed = sorted(
        name
        for name, value in os.environ.items()
        if pinned.get(name) != value and not any(fnmatchcase(name, pattern) for pattern in kept)
    )
    for name in removed:
        del os.environ[name]
    return removed


def key_names() -> set[str]:
    """The variables that params.yaml says hold keys of judges and of models behind an API."""
    try:
        text = PARAMS.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return set()  # the stage itself will say so
    return set(_KEY_NAME.findall(text)) - {"null"}
