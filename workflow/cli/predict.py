"""Predict new cases with the trained models of an experiment, all folds together."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "new cases with trained models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models", type=Path, required=True, help="results/models/{task}/{experiment} of the training run"
    )
    parser.add_argument("--results", type=Path, required=True, help="results of the run that has the new cases")
    parser.add_argument("--out", type=Path, required=True, help="TSV to write; cases left out go to {out}_left_out.tsv")
    parser.add_argument(
        "--cases", type=Path, help="clinical sheet of the new cases: all of them are then accounted for"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--allow-left-out", action="store_true", help="exit with 0 although cases were left out")


def run(options: argparse.Namespace) -> int:
    from models.new_cases import predict_new_cases

    left_out = predict_new_cases(options.models, options.results, options.out, options.cases, options.device)
    for lost in left_out:
        print(f"left out: {lost.case_id}: {lost.reason}")
    print(f"{options.out}: written")
    return 1 if left_out and not options.allow_left_out else 0
