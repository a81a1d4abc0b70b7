"""Bring a new expression table through a fold's genes: the inputs that a model of that fold expects."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.contracts.expression import UNITS

HELP = "a new expression table as a model's input"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--genes", type=Path, required=True, help="results/genes/{task}/fold{k}.json")
    parser.add_argument("--table", type=Path, required=True, help="TSV, CSV, gzip, h5ad, or a folder of STAR files")
    parser.add_argument("--out", type=Path, required=True, help="TSV to write; a report goes to {out}.json")
    parser.add_argument("--unit", choices=UNITS, default="", help="of the table; default: that of the training table")
    parser.add_argument("--cohort", default="", help="of all cases, where genes are centred per cohort")
    parser.add_argument("--aliases", help="HGNC's hgnc_complete_set.txt, or a table that names Ensembl ids")


def run(options: argparse.Namespace) -> int:
    from pipeline.expression.apply import apply_genes

    applied = apply_genes(options.genes, options.table, options.out, options.unit, options.cohort, options.aliases)
    for key, value in sorted(applied.report.items()):
        print(f"{key.replace('_', ' ')}: {value['number'] if isinstance(value, dict) else value}")
    print(f"{options.out}: {len(applied.cases)} cases, {len(applied.genes)} genes")
    return 0
