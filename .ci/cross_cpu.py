"""Whether toy results have the same bytes on another processor: this machine's own and emulated ones (qemu-user).

    python .ci/cross_cpu.py [MODEL ...]     (default: Haswell, EPYC-Rome, Nehalem; needs Debian's qemu-user)

Every stage of a toy study cut down to two steps of pretraining and two of training is done natively and once on each
emulated processor; all outputs must have equal hashes. Where they have not, the first tensor (or line) that differs is
named. A Nehalem has no AVX2 and FMA: it is not expected to agree, and is shown. An emulated run takes four to eight
minutes, most of which are imports.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("Haswell", "EPYC-Rome", "Nehalem")
WITHOUT_AVX2 = ("Nehalem",)
EMULATOR = "qemu-x86_64"
STAGES = ("pretrain@e8", "train", "sample", "judge", "aggregate@toy")


def main() -> int:
    """Compare; 0: all that should be equal is, 1: something differs, 2: it could not be tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, help="processors as `qemu-x86_64 -cpu help` lists them")
    parser.add_argument("--worker", choices=("avx2", "without"), help=argparse.SUPPRESS)
    parser.add_argument("--emulated", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return do_stages(avx2=arguments.worker == "avx2", emulated=arguments.emulated)
    sys.path.insert(0, str(ROOT))  # a worker imports the copy that it is in
    if shutil.which(EMULATOR) is None:
        print(f"error: {EMULATOR} is not here (Debian: apt-get install qemu-user). Nothing was compared.")
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        return compare(list(arguments.models), Path(scratch))


def compare(models: list[str], scratch: Path) -> int:
    """Do the study natively and on every model; print what differs."""
    from tests.support.checkout import hashes

    native = study(scratch / "native")
    if failure := run(native, None):
        print(f"error: the study failed on this machine's own processor: {failure}")
        return 2
    expected, status = hashes(native), 0
    print(f"native      {len(expected)} files")
    for model in models:
        started = time.monotonic()
        folder = study(scratch / model)
        failure = run(folder, model)
        found = {} if failure else hashes(folder)
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        took = f"({time.monotonic() - started:.0f} s)"
        should_agree = model not in WITHOUT_AVX2
        if failure:
            print(f"{model:<11} does not run here: {failure} {took}")
        elif different:
            first = first_difference(native / different[0], folder / different[0])
            print(f"{model:<11} {len(different)} of {len(expected)} files differ; first {different[0]}: {first} {took}")
        else:
            print(f"{model:<11} equal hashes of all {len(expected)} files {took}")
        if should_agree and (failure or different):
            status = 1
        elif not should_agree:
            print(f"{'':<11} (no AVX2 and FMA: not expected to agree)")
    return status


def study(folder: Path) -> Path:
    """A checkout with a study of one seed, two runs and two steps of each kind."""
    import yaml

    from tests.support.checkout import TUNED, checkout

    folder.mkdir()
    checkout(folder)
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    toy = params["studies"]["toy"]
    toy["probing"] = None
    toy |= {"seeds": [1], "suites": ["medical", "cooking", "harm"], "held_out": ["cooking"]}
    toy["judges"] = {"toy_rule": toy["judges"]["toy_rule"]}
    toy["pretraining"] |= {"steps": 2, "warmup_steps": 1}
    toy["training"] |= {"max_steps": 2, "checkpoint_every": 2}
    params["runs"][TUNED].pop("trajectory")
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


def run(folder: Path, model: str | None) -> str:
    """Do the stages in `folder` on a processor (None: this one); what went wrong, "" when nothing did."""
    python = [os.path.realpath(sys.executable)]
    command = python if model is None else [EMULATOR, "-cpu", model, *python]
    command += [__file__, "--worker", "without" if model in WITHOUT_AVX2 else "avx2"]
    command += [] if model is None else ["--emulated"]
    # The real interpreter does not know the environment that it is linked from.
    paths = [str(folder), *(path for path in sys.path if path.endswith("site-packages"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with (folder / "run.log").open("w") as log:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log)
    if done.returncode == 0:
        return ""
    lines = [line for line in (folder / "run.log").read_text(errors="replace").splitlines() if line.strip()]
    return f"exit status {done.returncode}: {lines[-1] if lines else 'no output'}"


def do_stages(*, avx2: bool, emulated: bool) -> int:
    """Do every stage in this process, which imports torch once.

    qemu-user crashes in NumPy's AVX2 sort of longer arrays, and in processes that are forked to draw: there NumPy uses
    older kernels, and one thread draws. What the stages write may depend on neither.
    """
    from concurrent.futures import ThreadPoolExecutor

    from pipeline.common import numerics

    # /proc/cpuinfo is the host's under emulation.
    numerics.has_avx2 = lambda: avx2
    if emulated:
        chosen = numerics.kernels()
        if avx2:
            chosen["NPY_DISABLE_CPU_FEATURES"] += " AVX2 FMA3"
        numerics.kernels = lambda: chosen
        numerics.pin_kernels()  # before NumPy is imported
        from pipeline.results.figures import draw

        draw.ProcessPoolExecutor = lambda *_, **__: ThreadPoolExecutor(1)
    from pipeline.__main__ import STAGES as STAGE_OF
    from pipeline.__main__ import main as pipeline
    from tests.support.checkout import BASE, TUNED

    for stage in STAGES:
        kind, _, name = stage.partition("@")
        for key in [name] if name else [BASE, TUNED]:
            if status := pipeline([kind, f"--{STAGE_OF[kind]}", key]):
                return status
    return 0


def first_difference(left: Path, right: Path) -> str:
    """The first tensor, or the first line, in which two files differ."""
    if not (left.exists() and right.exists()):
        return "one of them has no such file"
    if left.suffix == ".safetensors":
        from safetensors.numpy import load_file

        mine, other = load_file(left), load_file(right)
        return next((f"tensor {name}" for name in mine if mine[name].tobytes() != other[name].tobytes()), "the header")
    lines = zip(left.read_bytes().splitlines(), right.read_bytes().splitlines(), strict=False)
    return next((f"line {number}" for number, (a, b) in enumerate(lines, start=1) if a != b), "its length")


if __name__ == "__main__":
    sys.exit(main())
