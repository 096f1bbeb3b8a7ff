"""What params.yaml leaves out because a rule gives it: a run's share of its study's defaults, expectations by pattern,
where a suite of your own belongs, extra suites that are asked and judges that are in use, which part of a study is
done, what a base in a folder is called.

It works on the file as it is read. What does not have the shape that it should is left alone: the schema
(pipeline/params/schema.py) looks at the result, and says so.
"""

import fnmatch
from collections.abc import Mapping
from typing import Any

BASES = "bases"


def expand(content: Any) -> Any:
    """The content with each study's defaults given to its runs, its own suites apart, its expectations as pairs."""
    if not isinstance(content, Mapping):
        return content
    content = _narrowed(content)
    runs = {name: _with_defaults(run, content) for name, run in mapping(content, "runs").items()}
    studies = {
        name: _with_pairs(name, _with_judges(_with_extra_suites(_with_own_suites(study))), runs, content)
        for name, study in mapping(content, "studies").items()
    }
    hub = {name: _called_by_folder(base) for name, base in mapping(content, "bases", "hub").items()}
    changed = {
        **({"runs": runs} if runs else {}),
        **({"studies": studies} if studies else {}),
        **({"bases": {**content["bases"], "hub": hub}} if hub else {}),
    }
    return {**content, **changed}


def _narrowed(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The content with the runs and contrasts that a study's `models` names alone, and their pairs of these runs.

    What is left is not the study that was registered, and has no preregistration.
    """
    for name in mapping(content, "studies"):
        study = mapping(content, "studies", name)
        subset = mapping(study, "subsets", study.get("models"))
        if not all(isinstance(subset.get(key), list) for key in ("runs", "contrasts")):
            continue
        runs = {
            run: entry
            for run, entry in mapping(content, "runs").items()
            if mapping(entry).get("study") != name or run in subset["runs"]
        }
        contrasts = {
            key: _left(contrast, runs)
            for key, contrast in mapping(study, "contrasts").items()
            if key in subset["contrasts"]
        }
        narrowed = {**study, "contrasts": contrasts, "preregistration": None}
        content = {**content, "runs": runs, "studies": {**content["studies"], name: narrowed}}
    return content


def _left(contrast: Any, runs: Mapping[Any, Any]) -> Any:
    """A contrast with its pairs of these runs."""
    pairs = mapping(contrast).get("pairs")
    if not isinstance(pairs, list):
        return contrast
    kept = [pair for pair in pairs if not isinstance(pair, list) or all(run in runs for run in pair)]
    return {**contrast, "pairs": kept}


def mapping(content: Any, *keys: Any) -> Mapping[Any, Any]:
    """The mapping that stands under the keys, an empty one where there is none."""
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content if isinstance(content, Mapping) else {}


def _with_defaults(run: Any, content: Any) -> Any:
    """A run with its study's defaults if it trains; its own keys, and those of its `lora`, come before them."""
    study = run.get("study") if isinstance(run, Mapping) else None
    if not isinstance(study, str):
        return run
    defaults = mapping(content, "studies", study, "defaults")
    merged = {**(defaults if run.get("data") is not None else {}), **run}
    if isinstance(run.get("lora"), Mapping):
        merged["lora"] = {**mapping(defaults, "lora"), **run["lora"]}
    return merged


def _called_by_folder(base: Any) -> Any:
    """A hub base; where it is a folder here, that is its repository's name."""
    if not isinstance(base, Mapping) or "folder" not in base:
        return base
    return {"repository": base["folder"], **base}


def _with_own_suites(study: Any) -> Any:
    """A study with its own suites apart, and their names among its suites and where they say that they belong."""
    suites = study.get("suites") if isinstance(study, Mapping) else None
    if not isinstance(suites, list) or not (own := [entry for entry in suites if isinstance(entry, Mapping)]):
        return study
    names = [entry.get("name") if isinstance(entry, Mapping) else entry for entry in suites]
    held_out = [entry.get("name") for entry in own if entry.get("held_out") is True]
    refused = [entry.get("name") for entry in own if entry.get("refused") is True]
    if isinstance(study.get("held_out"), list):
        study = {**study, "held_out": [*study["held_out"], *held_out]}
    return {**study, "suites": names, "own_suites": own, **({"refused": refused[0]} if refused else {})}


def _with_extra_suites(study: Any) -> Any:
    """A study with its extra suites among its suites, where they are asked."""
    extra = mapping(study, "extra_suites")
    if extra.get("asked") is not True or not all(isinstance(it.get("suites"), list) for it in (study, extra)):
        return study
    return {**study, "suites": [*study["suites"], *extra["suites"]]}


def _with_judges(study: Any) -> Any:
    """A study with the judges that are in use."""
    judges = mapping(study, "judges")
    used = {name: judge for name, judge in judges.items() if mapping(judge).get("use") is not False}
    return study if len(used) == len(judges) else {**study, "judges": used}


def _with_pairs(name: Any, study: Any, runs: Mapping[Any, Any], content: Any) -> Any:
    """A study with each pattern of its expectations as pairs [run, its base's run], one for each run that it fits.

    The base's run is the first one that is routed to as many experts.
    """
    expected = study.get("expectations") if isinstance(study, Mapping) else None
    if not isinstance(expected, list):
        return study
    own = {run: entry for run, entry in runs.items() if isinstance(entry, Mapping) and entry.get("study") == name}
    trained = [run for run, entry in own.items() if entry.get("data") is not None]
    started = {run: (base := _base(run, own), _active(own[run], base, content)) for run in own}
    bases = {started[run]: run for run in reversed(own) if run not in trained}
    pairs: list[Any] = []
    for entry in expected:
        found = fnmatch.filter(map(str, trained), entry) if isinstance(entry, str) else []
        # A pattern that fits nothing, or a run whose base is not asked, is above itself: the checks refuse that.
        unknown = [[entry, entry]] if isinstance(entry, str) else [entry]
        pairs += [[run, bases.get(started[run], run)] for run in found] or unknown
    return {**study, "expectations": pairs}


def _active(run: Mapping[Any, Any], base: str | None, content: Any) -> str:
    """How many experts a run's tokens are routed to where it is sampled: its own number, or its base's."""
    own = mapping(run, "active").get("sampling", run.get("active"))
    known = {name: it for kind in ("toy", "hub") for name, it in mapping(content, "bases", kind).items()}
    return str(mapping(known, base).get("active") if own is None else own)


def _base(name: str, runs: Mapping[str, Any]) -> str | None:
    """The base that a run's chain starts from; None where that cannot be told, which is said elsewhere."""
    for _ in runs:
        folder, _, start = str(mapping(runs, name).get("model")).rpartition("/")
        if folder == BASES:
            return start
        name = start
    return None
