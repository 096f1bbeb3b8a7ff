"""Where a study's results come from: code, environment, machines, models, data, judges, time and cost.

DVC's outputs must come out the same twice, and times and machines do not. So nothing of this is a DVC output: every
stage, however it is started (`make reproduce`, `dvc repro`, `dvc exp run`), leaves two lines in a ledger outside
all outputs, .cache/ledger/STAGE@NAME.jsonl, one when it begins and one when it ends. What is known of a study that
was stopped, continued, or moved to another machine in between accumulates there; a killed attempt shows as
unfinished. This command puts the ledger's lines and what the other records say together and writes
artifacts/STUDY/provenance.json; `make reproduce` does so at its end.

No key, token, user name or host name is looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import sqlite3
import sys
from pathlib import Path
from typing import Any

from pipeline.api.config import ADAPTER
from pipeline.common.files import read_json, sha256_file, sha256_json, write_json
from pipeline.common.ledger import read_attempts
from pipeline.common.paths import ARTIFACTS, CACHE
from pipeline.params.checks import check_preregistration
from pipeline.params.load import load_params
from pipeline.params.schema import Params

VERDICTS = CACHE / "verdicts.sqlite"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--study", required=True, help="a name under studies in params.yaml")


def main(args: argparse.Namespace) -> None:
    """Write the study's provenance.json; print where it is, and what each kind of stage took."""
    from pipeline.report.content import times
    from pipeline.results.tables import markdown_table

    path = write(load_params(), args.study)
    rows = [
        [it.kind, str(it.stages), f"{it.seconds:.1f}", "" if it.usd is None else f"{it.usd:.2f}"]
        for it in times(read_json(path))
    ]
    print(markdown_table(["stage", "how many", "seconds", "USD"], rows, [False, True, True, True]))
    print(f"provenance  {path}")


def write(params: Params, study: str) -> Path:
    """Put together and write artifacts/STUDY/provenance.json. Raises UserError where it cannot be written.

    Says so on stderr where a base's answers are of several backends.
    """
    path = ARTIFACTS / study / "provenance.json"
    found = describe(params, study)
    for base, backends in found["sampled_by"].items():
        if len(backends) > 1:
            by = " and ".join(f"{name} ({', '.join(runs)})" for name, runs in sorted(backends.items()))
            print(
                f"warning: base {base} and what was trained on it are compared, and were sampled by {by}.",
                file=sys.stderr,
            )
    write_json(path, found)
    return path


def describe(params: Params, study: str) -> dict[str, Any]:
    """Everything that is known of how the study came about; the same records give the same answer."""
    bases = params.bases_of(study)
    names = params.stages_of(study)
    codes: list[Any] = []
    machines: list[Any] = []
    stages = {name: found for name in names if (found := _stage(name, codes, machines))}
    seconds: dict[str, float] = {}
    for name, stage in stages.items():
        kind = name.partition("@")[0]
        seconds[kind] = round(seconds.get(kind, 0.0) + stage["seconds"], 1)
    judges = {judge: _judge(judge) for judge in params.study(study).judges}
    behind = {base: _judge(f"bases.api.{base}") for base in bases if base in params.bases.api}
    tuned = {
        name: records
        for name in params.runs_of(study)
        if params.base_of(name) in behind and (records := _tuned(study, name))
    }
    lock = Path("dvc.lock")
    return {
        "study": study,
        "params_sha256": sha256_file(Path("params.yaml")),
        "preregistration": _preregistration(params, study),
        "dvc_lock_sha256": sha256_file(lock) if lock.exists() else None,
        "code": codes,
        "machines": machines,
        "bases": {base: pin for base in bases if (pin := _base(base))},
        "data": _data() if params.study(study).world == "hub" else {},
        "judges": judges,
        "judging_usd": round(sum(reply["usd"] for judge in judges.values() for reply in judge), 6),
        "api_models": behind,
        "api_sampling_usd": round(sum(reply["usd"] for model in behind.values() for reply in model), 6),
        "api_fine_tuning": tuned,
        "api_fine_tuning_usd": round(sum(job["usd"] or 0.0 for jobs in tuned.values() for job in jobs), 6),
        "sampled_by": _sampled_by(params, study, stages),
        "seconds": seconds,
        "stages": stages,
        "stages_not_recorded": [name for name in names if name not in stages],
    }


def _preregistration(params: Params, study: str) -> dict[str, Any] | None:
    """The document that fixed the study's analysis: as it is now, and as it was whenever a stage of the study began.

    One hash in both places says that no run came before the text, and that it has not changed since; "not there" or
    "not recorded" beside it, that one may have. Every attempt counts, those that failed too. Only a base that other
    studies use as well may have been fetched first.
    """
    document = params.study(study)
    if document.preregistration is None:
        return None
    check_preregistration(document)
    file = document.preregistration
    others = {stage for other in params.studies if other != study for stage in params.stages_of(other)}
    own = [stage for stage in params.stages_of(study) if stage not in others]
    began = [attempt["code"].get("preregistrations") for stage in own for attempt in read_attempts(stage)]
    at_stages = {"not recorded" if known is None else known.get(file, "not there") for known in began}
    return {"file": file, "sha256": sha256_file(Path(file)), "sha256_when_stages_began": sorted(at_stages)}


def _sampled_by(params: Params, study: str, stages: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Base -> backend -> the runs on that base that it sampled: one backend a base, since these are compared."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in params.runs_of(study):
        backend = stages.get(f"sample@{run}", {}).get("noted", {}).get("backend")
        if backend is not None:
            found.setdefault(params.base_of(run), {}).setdefault(backend, []).append(run)
    return found


def _stage(name: str, codes: list[Any], machines: list[Any]) -> dict[str, Any] | None:
    """One stage's attempts, None where the ledger has none. `code` and `machine` are places in the lists.

    seconds: of the attempts since the last completion before the latest; the latest made what is there, and the
    ones before it left checkpoints, answers and replies. seconds_earlier: of those before. unfinished: attempts
    without an end (killed, or at work), whose time is not known.
    environment_removed: the variables that the latest was not given (pipeline/common/environment.py). noted: what the
    stage chose by itself.
    """
    ordered = read_attempts(name)
    if not ordered:
        return None
    done = [place for place, attempt in enumerate(ordered) if attempt.get("outcome") == "done"]
    first = done[-2] + 1 if len(done) > 1 else 0
    last = ordered[done[-1]] if done else ordered[-1]
    return {
        "outcome": last.get("outcome", "unfinished"),
        "started": ordered[first]["started"],
        "seconds": round(sum(attempt.get("seconds", 0.0) for attempt in ordered[first:]), 1),
        "seconds_earlier": round(sum(attempt.get("seconds", 0.0) for attempt in ordered[:first]), 1),
        "attempts": len(ordered),
        "unfinished": sum("outcome" not in attempt for attempt in ordered),
        "code": _place(last["code"], codes),
        "machine": _place(last["machine"], machines),
        "environment_removed": last.get("removed", []),
        "noted": last.get("noted", {}),
    }


def _place(value: Any, values: list[Any]) -> int:
    if value not in values:
        values.append(value)
    return values.index(value)


def _base(name: str) -> dict[str, Any] | None:
    """What was recorded of a hub base or of one behind an API; of a toy base, DVC keeps the manifest in dvc.lock."""
    path = ARTIFACTS / "bases" / name / "base.json"
    if not path.exists():
        return None
    pin = read_json(path)
    if "endpoint" in pin:
        return pin
    return {
        "repository": pin["repository"],
        "revision": pin["revision"],
        "files": len(pin["files"]),
        "files_sha256": sha256_json(pin["files"]),
    }


def _tuned(study: str, run: str) -> list[dict[str, Any]]:
    """The run's fine-tuning jobs behind an API, one a seed: model, job, trained tokens, cost."""
    folder = ARTIFACTS / study / "adapters" / run
    names = ("start", "model", "job", "trained_tokens", "usd")
    records = [read_json(path) for path in sorted(folder.glob(f"seed-*/{ADAPTER}"))]
    return [{name: record[name] for name in names} for record in records]


def _data() -> dict[str, str]:
    """SHA-256 of the upstream files that are in data/."""
    from pipeline.data.upstream.sources import all_sources

    paths = {pin.path: Path("data") / pin.path for pin in all_sources()}
    return {name: sha256_file(path) for name, path in sorted(paths.items()) if path.is_file()}


def _judge(name: str) -> list[dict[str, Any]]:
    """Who answered under a judge's name, as the endpoint called itself, over all runs that share the cache."""
    if not VERDICTS.exists():
        return []
    query = (
        "SELECT model, fingerprint, COUNT(*), SUM(prompt_tokens), SUM(completion_tokens), SUM(usd), MIN(created), "
        "MAX(created) FROM replies WHERE judge = ? GROUP BY model, fingerprint ORDER BY model, fingerprint"
    )
    columns = ("model", "fingerprint", "replies", "prompt_tokens", "completion_tokens", "usd", "first", "last")
    try:
        with contextlib.closing(sqlite3.connect(f"file:{VERDICTS}?mode=ro", uri=True, timeout=60)) as cache:
            rows = cache.execute(query, (name,)).fetchall()
    except sqlite3.Error as error:
        print(f"provenance: {VERDICTS} cannot be read ({error})", file=sys.stderr)
        return []
    return [dict(zip(columns, row, strict=True)) for row in rows]
