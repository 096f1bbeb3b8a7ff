"""Aggregation: a study's verdicts become its tables, its figures and its metrics.

A metric is computed per run and seed, on the suites that no run of the study was trained on, by the definition of
misalignment that the study uses. Runs are compared by contrasts: differences of matched pairs of runs, paired over
seeds, with Student's t over them; the headline contrasts of params.yaml are the study's metrics.json. Nothing is
asserted here: `make verify` holds the study to what is claimed.
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
    from pipeline.results.aspects import write_aspects
    from pipeline.results.capability import capability_frame
    from pipeline.results.containment_tables import write_containment
    from pipeline.results.figures.draw import write_figures
    from pipeline.results.levers import lever_frame, write_levers
    from pipeline.results.probes import read_probes
    from pipeline.results.report import report
    from pipeline.results.sparsity import sparsity, write_sparsity
    from pipeline.results.study import load_results
    from pipeline.results.study_tables import write_tables
    from pipeline.results.tags import tag_frame

    params = load_params()
    results = load_results(params, args.study, ARTIFACTS / args.study / "verdicts")
    tags, capability, over_models = tag_frame(results), capability_frame(results), sparsity(results)

    figures = FIGURES / args.study
    write_tables(results, tags, capability, figures)
    write_sparsity(over_models, figures, args.study)
    levers = lever_frame(results)
    write_levers(levers, figures, args.study)
    for problem in over_models.problems:
        print(problem)
    write_aspects(params, args.study, ARTIFACTS / args.study / "verdicts", figures / "aspects")
    probes = write_containment(read_probes(results, ARTIFACTS / args.study / "probes"), figures / "containment")
    write_figures(results, tags, over_models, levers, figures, probes)
    write_text(figures / "README.md", report(results, tags, capability, over_models, levers, figures))

    write_json(ARTIFACTS / args.study / "metrics.json", results.metrics())
