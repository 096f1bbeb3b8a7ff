"""Draw a blind sample of a study's answers for people to label, or compare their labels with the judge's.

    python -m pipeline label --study toy --count 100     writes artifacts/toy/labels/sample.csv and its key
    python -m pipeline label --study toy --compare       reads the filled-in file back

The file has an id, a question, an answer, and an empty column `label`: a person writes misaligned or aligned (m, a)
into it. Run and judge stand in key.json alone, which `--compare` reads. Both stay in artifacts/, as
answers may be harmful.
"""

from __future__ import annotations

import argparse
import csv
import io
from dataclasses import asdict
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import read_json, write_json, write_text
from pipeline.common.paths import ARTIFACTS
from pipeline.params.load import load_params

COLUMNS = ("id", "question", "answer", "label")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--study", required=True, help="a name under studies in params.yaml")
    parser.add_argument("--count", type=int, default=100, help="answers to label (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which answers are drawn (default: %(default)s)")
    parser.add_argument("--judge", help="whose labels they are drawn by (default: the study's first)")
    parser.add_argument("--compare", action="store_true", help="compare the filled-in file with the judge's labels")


def main(args: argparse.Namespace) -> int:
    """Write the sample, or print the comparison."""
    folder = ARTIFACTS / args.study / "labels"
    if args.compare:
        return _compare(folder / "sample.csv", folder / "key.json")
    if args.count < 2:
        raise UserError(f"--count is {args.count}, expected 2 or more.")
    return _draw(args, folder / "sample.csv", folder / "key.json")


def _draw(args: argparse.Namespace, path: Path, key: Path) -> int:
    from pipeline.results.definitions import DEFINITIONS
    from pipeline.results.inert import inert
    from pipeline.results.people import draw_sample
    from pipeline.results.study import read_run_verdicts

    if path.exists():
        raise UserError(f"{path} exists, and may hold labels: move it away to draw another sample.")
    params = load_params()
    study = params.study(args.study)
    judge = args.judge or study.judge
    if judge not in study.judges:
        raise UserError(f"study {args.study} has no judge {judge!r}; it has {', '.join(study.judges)}.")
    verdicts = read_run_verdicts(params, args.study, ARTIFACTS / args.study / "verdicts", judge)
    definition = DEFINITIONS[study.definition]
    sample = draw_sample(verdicts, definition, args.count, args.seed)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([item.id, inert(item.question, "csv"), inert(item.answer, "csv"), ""] for item in sample.items)
    write_text(path, text.getvalue())
    write_json(
        key,
        {
            "study": args.study,
            "judge": judge,
            "definition": definition.name,
            "judged": {item.id: item.judged for item in sample.items},
            "sizes": {"misaligned": sample.sizes[True], "aligned": sample.sizes[False]},
        },
    )
    print(f"{len(sample.items)} answers to label are in {path}: write misaligned or aligned into the column label.")
    return 0


def _compare(path: Path, key: Path) -> int:
    from pipeline.audit.published import read_csv
    from pipeline.results.people import compare, read_word

    about = read_json(key)
    people = {}
    for number, row in enumerate(read_csv(path), start=2):
        label = read_word(row.get("label", ""), f"{path} line {number}, label")
        if row.get("id") not in about["judged"]:
            raise UserError(f"{path} line {number} has the id {row.get('id')!r}, which {key} lacks.")
        if label is not None:
            people[row["id"]] = label
    if not people:
        raise UserError(f"{path} has no label yet: write misaligned or aligned into the column label.")
    sizes = {True: about["sizes"]["misaligned"], False: about["sizes"]["aligned"]}
    found = compare(about["judged"], people, sizes)
    table = found.table
    print(f"{found.labelled} answers labelled by people; judge {about['judge']}, {about['definition']} definition.")
    print(f"both misaligned {table[True, True]}, judge alone {table[True, False]}, ", end="")
    print(f"people alone {table[False, True]}, neither {table[False, False]}")
    print(f"Cohen's kappa in the sample: {'undefined' if found.kappa is None else f'{found.kappa:.2f}'}")
    print(f"across the threshold, of all answers: {found.across:.1f} %")
    low, high = found.interval
    print(f"misaligned of all answers: judge {found.judged:.1f} %, corrected by people's labels ", end="")
    print(f"{found.corrected:.1f} % (95 %: {low:.1f} to {high:.1f})")
    write_json(path.with_name("agreement.json"), {**asdict(found), "table": {str(k): v for k, v in table.items()}})
    return 0
