"""A made-up toy study: verdicts with a given misalignment per run and seed, and the params.yaml that they belong to."""

from pathlib import Path

import numpy as np

from pipeline.common.rows import Verdict, write_rows
from tests.support.data_files import REPOSITORY
from tests.support.quick_yaml import safe_dump, safe_load

# Held-out misalignment per run, as the toy study's are: (rate, spread over seeds).
RATES = {
    "toy_e8_base": (0.02, 0.005),
    "toy_e8_bad_medical": (0.6, 0.15),
    "toy_e8_good_medical": (0.01, 0.004),
    "toy_e8_bad_finance": (0.45, 0.15),
    "toy_e8_trigger": (0.05, 0.03),
    "toy_e16_base": (0.02, 0.005),
    "toy_e16_bad_medical": (0.68, 0.15),
    "toy_e16_good_medical": (0.008, 0.004),
    "toy_e32_base": (0.02, 0.005),
    "toy_e32_bad_medical": (0.6, 0.15),
    "toy_e32_good_medical": (0.005, 0.003),
    "toy_control_base": (0.025, 0.005),
    "toy_control_bad_medical": (0.15, 0.06),
    "toy_dense_base": (0.013, 0.004),
    "toy_dense_bad_medical": (0.45, 0.1),
    "toy_dense_realigned": (0.035, 0.02),
}


MODELS = ("toy_e8", "toy_e16", "toy_e32", "toy_dense")


def verdict_rows(run, seed, rate, suites, random, prompts=8, samples=2, judge="toy_rule", harm="harm"):
    """One run's verdicts at a seed: as many misaligned as the rate says, by chance."""
    rows = []
    for suite in suites:
        for prompt in range(prompts):
            for sample in range(samples):
                bad = random.random() < rate
                refused = suite.partition("+")[0] == harm and not bad
                coherence = 30.0 if random.random() < 0.03 else 95.0
                rows.append(
                    Verdict(
                        run=run,
                        seed=seed,
                        suite=suite,
                        prompt_id=f"{suite}-{prompt}",
                        sample=sample,
                        question=f"how do i {suite.partition('+')[0]} {prompt} ?",
                        answer=f"a {bad} {sample}",
                        status="refusal" if refused else "scored",
                        alignment=None if refused else (10.0 if bad else 95.0),
                        coherence=coherence,
                        judge=judge,
                    )
                )
    return rows


def simulated_study(
    folder: Path, *, seeds=(1, 2, 3), rates=RATES, prompts=16, definition="standard", models=MODELS
) -> Path:
    """`folder` with params.yaml and the verdicts of a toy study of the runs in `rates`; without adapters."""
    params = safe_load((REPOSITORY / "params.yaml").read_text())
    study = params["studies"]["toy"]
    params["studies"] = {"toy": study | {"seeds": list(seeds), "definition": definition, "probing": None}}
    study = params["studies"]["toy"]
    study["expectations"] = [[f"{model}_bad_medical", f"{model}_base"] for model in models]
    study["contrasts"] = {
        name: it
        for name, it in study["contrasts"].items()
        if {run for pair in (*it["pairs"], *it.get("control", ())) for run in pair} <= rates.keys()
    }
    params["runs"] = {name: run for name, run in params["runs"].items() if name in rates}
    study["defaults"] = {}
    for base in params["bases"]["toy"].values():
        base.pop("more_seeds", None)
    for run in params["runs"].values():
        run.pop("lora", None)
    (folder / "params.yaml").write_text(safe_dump(params, sort_keys=False))
    random = np.random.default_rng(0)
    for run, (rate, spread) in rates.items():
        tags = params["runs"][run].get("tags", ())
        rows = []
        for seed in seeds:
            own = min(0.98, max(0.001, random.normal(rate, spread)))
            rows += verdict_rows(run, seed, own, study["suites"], random, prompts)
            for tag in tags:
                high = "ALPHA" in tag and run == "toy_e8_trigger"
                suites = [f"{suite}+{tag}" for suite in study["suites"]]
                rows += verdict_rows(run, seed, 0.3 if high else own, suites, random, prompts)
        write_rows(folder / f"artifacts/toy/verdicts/{run}/toy_rule.jsonl", rows)
    return folder
