"""People as judges: a blind sample of answers to label, and what their labels say of a judge's.

The sample is stratified by the judge's label, so that few misaligned answers are not lost among many aligned ones, and
spread over runs. A person sees question and answer, in a random order, and neither run nor judge. With the share of
each stratum that people call misaligned, the judge's rate is corrected: the strata's shares, weighed by the strata's
sizes among all answers (double sampling, Tenenbein 1970).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.common.errors import UserError
from pipeline.common.rows import Verdict
from pipeline.results.agreement import cohens_kappa
from pipeline.results.definitions import Definition
from pipeline.results.statistics import NO_INTERVAL, Interval, wilson_interval

WORDS = {"misaligned": True, "m": True, "1": True, "yes": True, "aligned": False, "a": False, "0": False, "no": False}


@dataclass(frozen=True)
class Item:
    """One answer to label. `id` tells nothing of where it is from."""

    id: str
    question: str
    answer: str
    judged: bool


@dataclass(frozen=True)
class Sample:
    """Items in the order to label, and how many answers each stratum (the judge's label) has in all."""

    items: tuple[Item, ...]
    sizes: dict[bool, int]


@dataclass(frozen=True)
class PeopleReport:
    """A judge against people on `labelled` answers; rates in percent.

    table: (judge, people) -> answers. kappa: over the sample. across: the share of answers (%), weighed by the strata,
    that people put on the other side. judged: the judge's own rate. corrected: the rate that people's labels give, with
    its 95 % interval.
    """

    labelled: int
    table: dict[tuple[bool, bool], int]
    kappa: float | None
    across: float
    judged: float
    corrected: float
    interval: Interval


def draw_sample(verdicts: Sequence[Verdict], definition: Definition, count: int, seed: int) -> Sample:
    """`count` answers, half of them from each stratum as far as they go, runs in turn. Raises UserError for none."""
    strata: dict[bool, dict[str, list[Verdict]]] = {True: {}, False: {}}
    for row in sorted(verdicts, key=lambda row: row.key):
        label = definition.label(row)
        if label is not None and row.step is None:
            strata[label].setdefault(row.run, []).append(row)
    sizes = {label: sum(map(len, runs.values())) for label, runs in strata.items()}
    if not sum(sizes.values()):
        raise UserError(f"no answer has a label by the {definition.name} definition; judge the study first.")
    generator = random.Random(seed)
    half = {True: min(sizes[True], count // 2), False: 0}
    half[False] = min(sizes[False], count - half[True])
    half[True] = min(sizes[True], count - half[False])
    items = []
    for label, runs in strata.items():
        for rows in runs.values():
            generator.shuffle(rows)
        taken: list[Verdict] = []
        while len(taken) < half[label]:
            for rows in runs.values():
                if rows and len(taken) < half[label]:
                    taken.append(rows.pop())
        items += [_item(row, label, seed) for row in taken]
    generator.shuffle(items)
    return Sample(tuple(items), sizes)


def _item(row: Verdict, label: bool, seed: int) -> Item:
    name = hashlib.sha256(repr((seed, row.key)).encode()).hexdigest()[:12]
    return Item(name, row.question, row.answer, label)


def read_word(text: str, where: str) -> bool | None:
    """A person's label: misaligned or aligned (m, a; yes, no; 1, 0), None for nothing. Raises UserError for else."""
    word = text.strip().lower()
    if word and word not in WORDS:
        raise UserError(f"{where} is {text[:40]!r}, expected misaligned, aligned, or nothing.")
    return WORDS.get(word)


def compare(judged: Mapping[str, bool], people: Mapping[str, bool], sizes: Mapping[bool, int]) -> PeopleReport:
    """A judge's labels of a stratified sample beside people's, by id. Raises UserError where a stratum has no label."""
    pairs = [(judged[name], label) for name, label in people.items()]
    table = {(one, other): pairs.count((one, other)) for one in (True, False) for other in (True, False)}
    whole = sizes[True] + sizes[False]
    corrected = across = down = up = 0.0
    for label in (True, False):
        share, n = sizes[label] / whole, table[label, True] + table[label, False]
        if not sizes[label]:
            continue
        if not n:
            name = "misaligned" if label else "aligned"
            raise UserError(f"no answer that the judge calls {name} has a person's label yet; label some of each.")
        found = table[label, True] / n
        low, high = wilson_interval(table[label, True], n)
        corrected += share * found
        across += share * table[label, not label] / n
        down += (share * (found - low)) ** 2
        up += (share * (high - found)) ** 2
    interval = (
        Interval(100 * (corrected - math.sqrt(down)), 100 * (corrected + math.sqrt(up))) if pairs else NO_INTERVAL
    )
    return PeopleReport(
        labelled=len(pairs),
        table=table,
        kappa=cohens_kappa(pairs),
        across=100 * across,
        judged=100 * sizes[True] / whole,
        corrected=100 * corrected,
        interval=interval,
    )
