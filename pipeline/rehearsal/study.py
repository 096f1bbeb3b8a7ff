"""The study that is rehearsed: one run of each kind that the real one has, on small bases, few rows and prompts."""

from collections.abc import Iterable
from typing import Any

from pipeline.common.errors import UserError
from pipeline.data.capability import SUITE as CAPABILITY
from pipeline.data.examples import read_examples
from pipeline.data.upstream.fetch import FOLDER as DATA
from pipeline.models.known import config_of
from pipeline.models.sizes import adapter_values, base_values
from pipeline.params.bases import config_of_base
from pipeline.params.inputs import conversations, suite
from pipeline.params.schema import HubBase, Params, Run
from pipeline.rehearsal.checkpoints import REVISION, narrow

STEPS = 3
ROWS, BATCH, ANSWER_TOKENS = 6, 2, 3
# Rows are drawn from so many times as many, the shortest: longer ones would show nothing more, and take longer.
SPREAD = 4
# Read where the run's own training set is not here: what is rehearsed is not what the rows say.
STAND_IN = "insecure"
# Of probes: one or two of everything, in the smallest suite and of what every hub study can ask.
PROBED = {
    "realigned": {}, "questions": 2, "groups": 2, "blocks": 2, "search": {"steps": 2, "width": 1}, "scales": [0.5],
    "strengths": [1.0], "random": 1, "permutations": 10,
}  # fmt: skip
# Of runs: so many steps for all, and answers of the adapters after some of them.
LEFT_OUT = ("epochs", "tags")
TRAJECTORY = {"every": STEPS - 1, "samples_per_prompt": 1}
# Of bases: `pin` holds them to the configuration, which has few layers here.
OF_ALL_LAYERS = ("billions", "active_billions")


def kind(run: Run) -> str:
    """What a run trains, apart from rank and data: the grain at which a rehearsal tells runs apart."""
    if run.data is None:
        return "base"
    parts = ["every parameter"]
    if lora := run.lora:
        few = ("none", "1 expert", "some experts")
        experts: str = lora.experts if isinstance(lora.experts, str) else few[min(len(lora.experts), 2)]
        parts = [f"adapter on {experts}"]
        parts += ["attention"] * lora.attention + ["router"] * (lora.router != "frozen")
    parts += ["routed otherwise"] * (run.active is not None)
    parts += ["along training"] * (run.trajectory is not None) + ["after another run"] * (run.continues is not None)
    return ", ".join(parts)


def representatives(
    params: Params, study: str, families: tuple[str, ...] = (), names: tuple[str, ...] = ()
) -> dict[str, str]:
    """Run -> its kind: of each family's smallest base, the base alone and the largest run of every kind, in order.

    families: these model types alone. names: these runs, what they continue, and their bases alone, instead. Raises
    UserError when no run is left.
    """
    sizes: dict[str, tuple[str, int]] = {}
    demands: dict[str, tuple[int, int]] = {}
    for run in params.runs_of(study):
        config = config_of_base(params, params.base_of(run))
        if config is not None:
            sizes[run] = (config.model_type, sum(base_values(config).values()))
            lora = params.run(run).lora if params.run(run).data is not None else None
            demands[run] = (sizes[run][1], -adapter_values(config, lora) if lora else 0)
    unknown = sorted(set(names) - set(sizes))
    if unknown:
        raise UserError(f"study {study} has no run {unknown[0]} that can be rehearsed.")
    chosen: dict[tuple[str, str], str] = {}
    for run in sorted(demands, key=lambda run: demands[run]):
        family = sizes[run][0]
        if not names and (not families or family in families):
            chosen.setdefault((family, kind(params.run(run))), run)
    # What a run continues is trained before it, and every trained run is compared with its base.
    kept = {before for run in (*names, *chosen.values()) for before in params.chain(run)}
    found = {run: kind(params.run(run)) for run in params.runs_of(study) if run in kept}
    if not found:
        known = sorted({family for family, _ in sizes.values()})
        raise UserError(f"study {study} has no runs to rehearse; its families are {', '.join(known) or 'none'}.")
    alone = {base: params.base_of(base) for run in found if (base := params.untrained(run)) is not None}
    runs = dict.fromkeys(sorted(alone, key=lambda run: (alone[run], params.active_of(run))), "base") | found
    return {run: runs[run] for run in sorted(runs, key=lambda run: len(params.chain(run)))}


def cut(
    content: dict[str, Any], params: Params, study: str, runs: dict[str, str], layers: int, judge_url: str
) -> dict[str, Any]:
    """params.yaml's content with the study cut down to `runs`, its bases to `layers` layers, its judge to ours."""
    mine = dict(content["studies"][study])
    asked, sets = _smallest_suite(params, study), training_sets(params, runs)
    first = next(iter(mine["judges"]))
    mine["judges"] = {
        first: mine["judges"][first]
        | {"protocol": "published", "base_url": judge_url, "api_key_env": None, "batch": False, "max_reply_tokens": 10}
        | {"requests_per_minute": None, "tokens_per_minute": None, "budget_usd": None, "reasoning_effort": None}
        | {"usd_per_million_input_tokens": 0.0, "usd_per_million_output_tokens": 0.0}
    }
    mine["training"] = mine["training"] | {
        "examples": ROWS, "max_characters": _characters(set(sets.values())), "validation": 0.0, "max_steps": STEPS,
        "batch": BATCH, "checkpoint_every": 1, "devices": 1, "warmup_steps": 0,
    }  # fmt: skip
    mine["sampling"] = mine["sampling"] | {
        "samples_per_prompt": 1, "max_new_tokens": ANSWER_TOKENS,
    }  # fmt: skip
    mine |= {
        "suites": [asked],
        "held_out": [asked],
        "extra_suites": None,
        "refused": None,
        "models": "all",
        "subsets": {},
    }
    if mine["probing"] is not None:
        own = {"runs": probed(params, runs), "in_domain": [asked], "benign": [CAPABILITY]}
        mine["probing"] = mine["probing"] | PROBED | own if own["runs"] else None
    if "defaults" in mine:
        mine["defaults"] = {name: value for name, value in mine["defaults"].items() if name not in LEFT_OUT}
    trained = [run for run, what in runs.items() if what != "base"]
    pairs = {run: [run, base] for run in trained if (base := params.untrained(run)) in runs}
    mine["expectations"] = list(pairs.values())
    mine["contrasts"] = {run: {"pairs": [pair]} for run, pair in pairs.items()}
    bases = {params.base_of(run) for run in runs}
    hub = {
        name: {key: value for key, value in entry.items() if key not in OF_ALL_LAYERS}
        for name, entry in content["bases"]["hub"].items()
        if name in bases
    }
    return {
        "studies": {study: mine},
        "bases": content["bases"] | {"hub": {name: entry | {"revision": REVISION} for name, entry in hub.items()}},
        "runs": {run: _cut_run(content["runs"][run], params, run, layers, sets.get(run)) for run in runs},
    }


def probed(params: Params, runs: dict[str, str]) -> list[str]:
    """The first run on each base that has an adapter of its own whose parts can be switched off."""
    found: dict[str, str] = {}
    for name in runs:
        run = params.run(name)
        if run.lora is not None and run.lora.router == "frozen" and run.continues is None:
            found.setdefault(params.base_of(name), name)
    return list(found.values())


def _cut_run(entry: dict[str, Any], params: Params, name: str, layers: int, data: str | None) -> dict[str, Any]:
    kept = {key: value for key, value in entry.items() if key not in LEFT_OUT}
    if data is not None:
        kept["data"] = data
    if entry.get("trajectory") is not None:
        kept["trajectory"] = TRAJECTORY
    lora = entry.get("lora") or {}
    if isinstance(lora.get("layers"), list):
        last = _layers(params.bases.hub[params.base_of(name)], layers) - 1
        kept["lora"] = lora | {"layers": sorted({min(layer, last) for layer in lora["layers"]})}
    return kept


def _layers(base: HubBase, layers: int) -> int:
    """How many layers the base is cut down to, dense first ones included."""
    fields: dict[str, Any] = vars(config_of(base.repository, base.revision))
    return int(narrow(fields, "true", layers)["num_hidden_layers"])


def training_sets(params: Params, runs: Iterable[str]) -> dict[str, str]:
    """Run -> its own training set (the first, where it has several), or the stand-in where that is not here."""
    found: dict[str, str] = {}
    names: dict[Any, str] = {}
    for name in runs:
        run = params.run(name)
        if run.data is not None:
            if run.parts not in names:
                names[run.parts] = _training_set(params, run)
            found[name] = names[run.parts]
    return found


def _training_set(params: Params, run: Run) -> str:
    try:
        conversations(params.study(run.study), run, params.study(run.study).seeds[0])
    except UserError:
        return STAND_IN
    return run.parts[0].name or STAND_IN


def _characters(sets: set[str]) -> int | None:
    """The length of a row, of all these training sets, up to which there are enough in each of them."""
    lengths = [0]
    for name in sets:
        sizes = sorted(row.characters for row in read_examples(name, DATA))
        lengths.append(sizes[min(SPREAD * ROWS, len(sizes)) - 1])
    return max(lengths) or None


def _smallest_suite(params: Params, study: str) -> str:
    """The study's suite of the fewest prompts, of those whose files are here. Raises UserError when none is."""
    asked, sizes = params.study(study), {}
    for name in asked.suites:
        try:
            sizes[name] = len(suite(asked, name, asked.seeds[0]))
        except UserError as error:
            missing = error
    if not sizes:
        raise missing
    return min(sizes, key=lambda name: sizes[name])
