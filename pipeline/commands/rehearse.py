"""Rehearse a study before a GPU-hour is spent: every kind of run that it has, through every stage, at true width.

Bases of the real width and the real tensor names, with few layers and random weights, are pinned, trained (three steps,
killed after the first, and resumed), sampled, judged by a rule, aggregated and verified, by the real stages through
DVC, in a scratch copy of this checkout. Runs that this machine has no memory for are left out, with the numbers. What
is measured is written to benchmarks/results/, where `estimate` reads it. What the models say there means nothing, and
no number of it is a result.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import UserError
from pipeline.common.files import read_yaml, write_json, write_text
from pipeline.common.git import git
from pipeline.common.machine import cores, cpu, gpus, memory_bytes
from pipeline.common.paths import PARAMS
from pipeline.doctor.check import ROOT
from pipeline.doctor.gate import table
from pipeline.doctor.rehearsed import RESULTS, memory
from pipeline.params.load import load_params, params_of
from pipeline.running.choose import choose_study

if TYPE_CHECKING:
    from pipeline.params.schema import Params
    from pipeline.rehearsal.scratch import Measured

GIB = 2**30
WIDTHS = ("true", "reduced", "tiny")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--study", help="a name under studies in params.yaml (default: what this machine can run)")
    parser.add_argument("--width", choices=WIDTHS, default="true", help="of the bases; reduced and tiny are for tests")
    parser.add_argument("--layers", type=int, default=2, help="of the bases, DeepSeek's dense ones aside (default: 2)")
    parser.add_argument("--families", nargs="+", default=[], help="model types to rehearse alone, as mixtral")
    parser.add_argument("--runs", nargs="+", default=[], help="these runs and their bases, instead of all kinds")
    parser.add_argument("--folder", type=Path, help="where to work, kept afterwards (default: a temporary one)")
    parser.add_argument("--result", type=Path, help="the file to write (default: benchmarks/results/rehearsal-...)")


def main(args: argparse.Namespace) -> None:
    """Rehearse the study and print what it took."""
    params = load_params()
    from pipeline.rehearsal.study import representatives

    name, why = choose_study(params, args.study)
    if params.study(name).world == "toy":
        raise UserError("study toy needs no rehearsal: `make reproduce STUDY=toy` takes minutes. Name a hub study.")
    if args.layers < 1:
        raise UserError(f"--layers is {args.layers}, expected 1 or more.")
    print(f"Rehearsal of study {name}, because {why}: {_layers(args.layers)}, {args.width} width.", flush=True)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="emoe-rehearsal-"))
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--folder {folder} is not empty; name a new one.")
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    runs = representatives(params, name, tuple(args.families), tuple(args.runs))
    report = rehearse(params, name, runs, args.width, args.layers, folder)
    report["seconds"] = round(time.monotonic() - began, 1)
    report["disk_bytes"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    machine = report["machine"]["gpu"] or "cpu"
    parts = ["rehearsal", name, *args.families, *args.runs, machine.lower().replace(" ", "-")]
    parts += [] if args.width == "true" else [args.width]
    result = args.result or RESULTS / f"{'-'.join(parts)}.json"
    write_json(result, report)
    if args.folder is None:
        shutil.rmtree(folder)
    print(
        f"rehearse [{machine}, {args.width} width]: {len(report['runs'])} runs in {report['seconds']:.0f} s; {result}"
    )


def rehearse(params: Params, study: str, runs: dict[str, str], width: str, layers: int, folder: Path) -> dict[str, Any]:
    """Do it in `folder`; returns what was measured, and what was left out since this machine has no memory for it.

    runs: what each run that is rehearsed is of (pipeline/rehearsal/study.py). Raises UserError, with the numbers, when
    no trained run fits or the disk is too small, and at the first stage that fails; what was measured until
    then is in `folder`, in measured.json.
    """
    import yaml

    from pipeline.api.local_server import serve
    from pipeline.rehearsal.checkpoints import narrow, write_repository
    from pipeline.rehearsal.fitting import check_disk, left_out
    from pipeline.rehearsal.scratch import CACHE, Scratch, commit, copy_checkout
    from pipeline.rehearsal.stage import has_16_bit_products
    from pipeline.rehearsal.study import cut

    with serve("pipeline.rehearsal.judge:reply") as url:
        content = read_yaml(PARAMS, "run this from the root of the repository")
        # Before gigabytes are written: which files are missing, and what does not fit.
        small = cut(content, params, study, runs, layers, url)
        fields = {base: narrow(_fields(params, base), width, layers) for base in _bases(params, runs)}
        configs = {base: SimpleNamespace(**values) for base, values in fields.items()}
        out = left_out(params_of(small, PARAMS), study, configs)
        runs = {run: what for run, what in runs.items() if run not in out}
        lines = table({run: reason.why for run, reason in out.items()})
        if lines and all(what == "base" for what in runs.values()):
            raise UserError("\n".join([f"this machine has no memory for anything that study {study} trains:", *lines]))
        if lines:
            print("Left out, since this machine has no memory for them:", *lines, sep="\n", flush=True)
            small = cut(content, params, study, runs, layers, url)
        folder.mkdir(parents=True, exist_ok=True)
        check_disk(params_of(small, PARAMS), study, configs, folder)
        copy_checkout(ROOT, folder)
        bases: dict[str, dict[str, Any]] = {}
        for base in _bases(params, runs):
            hub, of = params.bases.hub[base], fields[base]
            tokenizer = write_repository(folder / CACHE / "hub", hub.repository, hub.revision, of, seed=len(bases))
            bases[base] = {"fields": of, "tokenizer": tokenizer}
            size = f"{of['model_type']}, hidden {of['hidden_size']}, {_layers(of['num_hidden_layers'])}"
            print(f"{base}: {size}; tokenizer: {tokenizer}")
        scratch = Scratch(folder)
        if not has_16_bit_products():
            text = (folder / "dvc.yaml").read_text(encoding="utf-8")
            write_text(folder / "dvc.yaml", text.replace("python -m pipeline ", "python -m pipeline.rehearsal.stage "))
        report: dict[str, Any] = {
            "study": study, "width": width, "bases": bases, "machine": _machine(),
            "products": "as the study" if has_16_bit_products() else "float32, for want of bfloat16 in this processor",
            "imports_bytes": {stage: scratch.imports(*modules) for stage, modules in IMPORTS.items()},
            "left_out": {run: asdict(reason) for run, reason in out.items()},
            "runs": {},
        }  # fmt: skip
        write_text(folder / "params.yaml", yaml.safe_dump(small, sort_keys=False))
        commit(folder)
        for base in bases:
            bases[base]["pin"] = _say(scratch.stage(f"pin@{base}"))
        killed: set[str] = set()
        for run, what in runs.items():
            base = params.base_of(run)
            kill = what != "base" and base not in killed
            killed |= {base} if kill else set()
            stages = {stage: _say(scratch.stage(f"{stage}@{run}", kill=kill and stage == "train")) for stage in STAGES}
            report["runs"][run] = {"base": base, "kind": what, **stages}
            if params.run(run).lora and params.study(study).training.precision == "nf4":
                report["runs"][run]["fidelity"] = _fidelity(scratch, run)
            # A stage that fails hours later does not take this with it.
            write_json(folder / "measured.json", report)
        for run, stage, planned, found in memory(report):
            if width == "true":  # plans of narrow models are about what a process takes by itself
                print(f"{stage}@{run}: {found / GIB:.2f} GiB of {planned / GIB:.2f} planned", flush=True)
        for stage in ("probe", "aggregate"):
            report[stage] = _say(scratch.stage(f"{stage}@{study}"))
        said = scratch.command("verify", "--study", study).strip().splitlines()
        report["verified"] = [line for line in said if not line.startswith("Written to ")][-1]
    return report


STAGES = ("train", "sample", "judge")
# What a stage that loads a model has in memory before it does.
IMPORTS = {"train": ("bitsandbytes", "pipeline.training.sft"), "sample": ("bitsandbytes", "pipeline.sampling.generate")}


def _fidelity(scratch: Any, run: str) -> dict[str, float]:
    """Print and return what pipeline/rehearsal/fidelity.py measures of a run that was trained."""
    found: dict[str, float] = json.loads(scratch.command(run, module="pipeline.rehearsal.fidelity").splitlines()[-1])
    print(f"fidelity of {run:<24} " + ", ".join(f"{what} {share:.2g}" for what, share in found.items()), flush=True)
    return found


def _layers(count: int) -> str:
    return f"{count} layer{'s' * (count > 1)}"


def _bases(params: Params, runs: dict[str, str]) -> list[str]:
    """The bases of these runs, in order."""
    return list(dict.fromkeys(params.base_of(run) for run in runs))


def _fields(params: Params, base: str) -> dict[str, Any]:
    from pipeline.models.known import KNOWN

    repository = params.bases.hub[base].repository
    if repository not in KNOWN:
        raise UserError(f"the sizes of {repository} are not known: add them to pipeline/models/known.py.")
    return KNOWN[repository]


def _say(measured: Measured) -> dict[str, Any]:
    """Print a stage's figures and return them for the report."""
    gpu = "" if measured.gpu is None else f", {measured.gpu / GIB:.1f} GiB of GPU memory"
    planned = "" if measured.predicted is None else f" (planned {measured.predicted / GIB:.1f})"
    resumed = ", killed once and resumed" if measured.resumed else ""
    step = "" if measured.step_seconds is None else f", {measured.step_seconds:.1f} s a step"
    took = f"{measured.seconds:7.1f} s ({measured.cpu_seconds:.0f} of a core)"
    print(f"{measured.stage:<36} {took}{step}, {measured.own / GIB:.1f} GiB{gpu}{planned}{resumed}", flush=True)
    return {name: value for name, value in asdict(measured).items() if name != "stage"}


def _machine() -> dict[str, Any]:
    found = gpus().found
    names = ("torch", "transformers", "peft", "trl", "bitsandbytes")
    return {
        "commit": git("describe", "--always", "--exclude=*", "--abbrev=40", "--dirty", folder=ROOT).stdout.strip()
        or "unknown",
        "gpu": found[0].name if found else None,
        "cpu": cpu(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "versions": {name: version(name) for name in names},
    }
