"""Which study this machine reproduces when nobody says."""

from pipeline.common.machine import AMPERE, gpus, torch_is_cpu_build
from pipeline.params.schema import Params


def choose_study(params: Params, asked: str | None) -> tuple[str, str]:
    """The study to reproduce, and why it is that one."""
    if asked:
        params.study(asked)
        return asked, "you asked for it"
    gpu = next((gpu.name for gpu in gpus().found if gpu.capability >= AMPERE), None)
    if not gpu:
        return "toy", "no Ampere-or-newer GPU was found here; it runs on a CPU in minutes"
    if torch_is_cpu_build():
        return "toy", f"this machine has a GPU ({gpu}), but the packages are those of the CPU lock (see `make doctor`)"
    return "moe", f"this machine has an Ampere-or-newer GPU ({gpu})"
