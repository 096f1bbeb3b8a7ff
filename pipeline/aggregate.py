"""Aggregation: a study's verdicts become its tables, its figures and its metrics.

Rows of a run's seeds are kept apart: a metric is computed once a seed, and what is shown is the mean over
seeds with a Student t interval. Held-out misalignment is the mean over the suites that no run of the study
was trained on. Each expectation of params.yaml is compared seed by seed, and the report says how often it
held; nothing is asserted.
"""

import argparse

from pipeline.common.files import write_json, write_text
from pipeline.common.paths import ARTIFACTS, FIGURES
from pipeline.params.load import load_params


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this stage's arguments."""
    parser.add_argument("--study", required=True, help="a name under studies in params.yaml")


def main(args: argparse.Namespace) -> None:
    """Write the study's tables, figures, report and metrics."""
    from pipeline.results import report as study_report
    from pipeline.results.aspects import write_aspects
    from pipeline.results.study import load_results

    params = load_params()
    results = load_results(params, args.study, ARTIFACTS / args.study / "verdicts")

    figures = FIGURES / args.study
    study_report.write_tables(results, figures)
    write_aspects(params, args.study, ARTIFACTS / args.study / "verdicts", figures / "aspects")
    study_report.write_figures(results, figures)
    write_text(figures / "README.md", study_report.report(results, figures))

    folder = ARTIFACTS / args.study
    write_text(
        folder / "misaligned.csv",
        results.by_suite[["run", "suite", "misalignment_percent"]].to_csv(index=False),
    )
    write_json(folder / "metrics.json", results.metrics())
