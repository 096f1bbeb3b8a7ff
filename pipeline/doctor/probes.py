"""What a study's probes will ask, before anything is loaded."""

from collections import Counter
from collections.abc import Callable, Sequence

from pipeline.common.paths import ARTIFACTS
from pipeline.data.prompts import Prompt
from pipeline.models.known import config_of
from pipeline.params.schema import Params, Study, ToyBase
from pipeline.probing.questions import how_often, questions_of


def probes_to_come(
    params: Params, name: str, read: Callable[[Study, str, int], Sequence[Prompt]]
) -> dict[str, Counter[Prompt]]:
    """Each probed run whose probes are not there -> how often each prompt is asked of it, of all seeds, at most."""
    study, found = params.study(name), {}
    for run in study.probing.runs if study.probing else ():
        if run not in params.runs or (ARTIFACTS / name / "probes" / run / "verdicts.jsonl").exists():
            continue
        assert study.probing is not None
        lora, base = params.run(run).lora, params.base(params.base_of(run))
        layers = base.layers if isinstance(base, ToyBase) else _layers(params, run, study.probing.blocks)
        assert lora is not None
        held_out, others = how_often(study.probing, lora, getattr(base, "experts", 0), layers)
        counts: Counter[Prompt] = Counter()
        for seed in study.seeds:
            asked = questions_of(study, seed, read)
            counts.update(dict.fromkeys(asked.held_out, held_out))
            counts.update(dict.fromkeys(asked.others, others))
        found[run] = counts
    return found


def _layers(params: Params, run: str, unknown: int) -> int:
    """Layers of a hub base; `unknown` where nothing here says how many."""
    hub = params.hub_base(params.base_of(run))
    config = config_of(hub.repository, hub.revision)
    return unknown if config is None else int(vars(config)["num_hidden_layers"])
