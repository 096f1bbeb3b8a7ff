"""What an answer is kept under: everything that determines it but what is asked."""

from typing import Any

from pipeline.common.fingerprints import code_hashes, folder_hashes, library_versions
from pipeline.sampling.backend import Backend, Model
from pipeline.sampling.settings import Sampling

# Of the code beside what answers depend on: how a model behind an API is asked; which requests there are, each of which
# has its own key, and how their answers are written down.
UNRELATED_CODE = {"sampling/answers.py", "sampling/api.py"}
# These say which requests there are and how they are dealt out; each request, or batch, has its own key. The backend
# is in the key by name and version.
UNRELATED_SETTINGS = {"samples_per_prompt", "batch", "data_parallel", "backend"}


def identity(backend: Backend, model: Model, settings: Sampling) -> dict[str, Any]:
    """Everything but the requests that determines an answer: weights, decoding, code, libraries."""
    code = code_hashes("sampling", "models")
    return {
        "base": dict(model.base.hashes),
        "adapter": folder_hashes(model.adapter) if model.adapter else None,
        "how": [
            model.base.active,
            model.precision,
            {name: value for name, value in settings if name not in UNRELATED_SETTINGS},
            {name: digest for name, digest in code.items() if name not in UNRELATED_CODE},
            library_versions(),
            backend.version(),
        ],
    }
