"""The main job on the real files beside the project: ``make real`` (reruns go on where the last one stopped).

Three parts, each printed as a table:

1. ``slides``: all real slides and two glioma fields, from files to feature bags at 20x, 10x and 5x;
2. ``molecular``: a real glioma cohort without slides, from z-scores to evaluated models on patient folds;
3. ``triples``: the fused path on the two patients of whom a field, RNA and labels are at hand.

The encoder has random weights where no pretrained ones can be had: the bags show that the path works, nothing else.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from models.checkpoint import read_checkpoint
from models.data import Cohort
from models.experiment import Experiment, Inputs
from models.predict import predict_cases
from models.train import train_folds
from pipeline.contracts import layout
from pipeline.contracts.batches import read_batch
from pipeline.contracts.cohort import read_cases
from pipeline.contracts.features import read_index
from pipeline.contracts.files import read_table, write_table
from pipeline.contracts.splits import SplitRow, write_splits
from pipeline.contracts.tasks import Task, read_labels
from pipeline.expression import ExpressionParams, prepare_expression
from pipeline.genes import GeneParams, select_genes_for_folds

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
WORK = ROOT / "real"
SLIDES = {
    "CMU-1-Small-Region": ("slides/CMU-1-Small-Region.svs", ""),
    "C3L-00601-26": ("slides/C3L-00601-26_5x_pyramid.tif", ""),
    "test3-DAPI": ("slides/test3-DAPI.ndpi", ""),
    "camelyon-lowres": ("slides/camelyon_lowres.dcm", ""),
    "TCGA-06-0174": ("he-patches/glioma_TCGA-06-0174_GBM.png", "0.5"),
    "TCGA-HT-7470": ("he-patches/glioma_TCGA-HT-7470_LGG.png", "0.5"),
}
TRIPLES = ("TCGA-06-0174", "TCGA-HT-7470")
TASKS = [
    {"name": "idh_codel", "kind": "classification", "label": "idh_codel_subtype"},
    {"name": "grade", "kind": "classification", "label": "grade"},
    {
        "name": "survival",
        "kind": "survival",
        "time": "survival_months",
        "event": "event",
        "time_unit": "months",
    },
]
EXPRESSION = {"unit": "zscore", "clip": 10.0}


def main() -> int:
    if not DATA.is_dir():
        print("SKIPPED: the real files are not there (a folder shared/data beside the project).")
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    slides = run_slides()
    run_molecular()
    run_triples(slides)
    return 0


def run_slides() -> Path:
    """Slides and fields to feature bags; prints the verdict of every slide at every magnification."""
    folder = WORK / "slides"
    rows = [
        {"slide_id": i, "case_id": i, "path": os.path.relpath(DATA / path, folder), "um_per_px": um}
        for i, (path, um) in SLIDES.items()
    ]
    _put(folder / "slides.tsv", rows)
    _put(folder / "cases.tsv", [{"case_id": i} for i in SLIDES])
    _snakemake(
        folder,
        {
            "inputs": {"slides": "slides.tsv", "cases": "cases.tsv", "allow_failed": True},
            "tiles": {"magnifications": [20, 10, 5]},
            "encoders": [{"slug": "resnet50-random", "name": "resnet50.tv_in1k", "weights": "random"}],
        },
    )
    results = folder / "results"
    bags = {
        (b.slide_id, b.magnification): b.n_tiles for b in read_index(layout.features_index(results, "resnet50-random"))
    }
    print("\nslide\tstatus\tstage\t20x\t10x\t5x\treason")
    for path in sorted((results / "features/resnet50-random/_batches").glob("*.tsv")):
        for slide, row in read_batch(path).items():
            tiles = "\t".join(str(bags.get((slide, mag), "-")) for mag in (20.0, 10.0, 5.0))
            print(f"{slide}\t{row.status}\t{row.stage}\t{tiles}\t{row.reason}")
    return results


def run_molecular() -> None:
    """SNN and logistic / Cox on the glioma z-scores, five folds by patient; prints metrics with intervals."""
    folder = WORK / "molecular"
    with open(DATA / "glioma-tcga/clinical.csv", newline="") as handle:
        clinical = list(csv.DictReader(handle))
    _put(folder / "cases.tsv", clinical)
    _snakemake(
        folder,
        {
            "inputs": {
                "cases": "cases.tsv",
                "expression": os.path.relpath(DATA / "glioma-tcga/rna_zscores.csv.gz", folder),
                "allow_failed": True,
            },
            "expression": EXPRESSION,
            "genes": {"selection": "all"},
            "splits": {"folds": 5},
            "tasks": TASKS,
            "experiments": [
                {"name": "linear", "model": "linear"},
                {"name": "snn", "model": "snn"},
                {"name": "age", "model": "clinical", "params": {"columns": ["age"]}},
            ],
        },
    )
    print("\ntask\texperiment\tmetric\tvalue\tlow\thigh\tcases")
    for task in TASKS:
        for row in read_table(layout.evaluation(folder / "results", task["name"])):
            print(
                "\t".join(
                    [
                        task["name"],
                        *(row[k] for k in ("experiment", "metric", "value", "low", "high", "n_cases")),
                    ]
                )
            )


def run_triples(slides: Path) -> None:
    """Train and predict concat fusion on the two real triples. Two patients show that the path runs, nothing else."""
    folder = WORK / "triples"
    known = read_cases(WORK / "molecular/cases.tsv").rows
    _put(folder / "cases.tsv", [known[case] for case in TRIPLES])
    task = Task("idh_codel", "classification", label="idh_codel_subtype")
    expression, genes = folder / "expression.h5ad", folder / "genes" / "fold0.json"
    prepare_expression(
        DATA / "glioma-tcga/rna_zscores.csv.gz", expression, ExpressionParams(**EXPRESSION), list(TRIPLES)
    )
    splits = folder / "splits.tsv"
    write_splits(splits, [SplitRow(case, 0, "train") for case in TRIPLES])
    labels = read_labels(folder / "cases.tsv", task)
    select_genes_for_folds(expression, splits, labels.cases, GeneParams(selection="all"), [genes], task.name)
    experiment = Experiment("fusion", "concat", magnification=20.0, epochs=2)
    inputs = Inputs(
        features_index=Path(layout.features_index(slides, "resnet50-random")),
        expression=expression,
        genes_dir=genes.parent,
        splits=splits,
        cases=folder / "cases.tsv",
    )
    train_folds(experiment, task, inputs, folder / "model", folder / "model/index.tsv", threads=1)
    print("\ncase\tlabel\tprediction (in-sample: two patients, random encoder; the path runs, no claim)")
    checkpoint = read_checkpoint(folder / "model/fold0/checkpoint.pt")
    cohort = Cohort(inputs.features_index, checkpoint.magnification, inputs.expression)
    outcomes, lost = predict_cases(checkpoint, cohort, TRIPLES)
    for outcome in outcomes:
        shown = ", ".join(f"{c} {p:.3f}" for c, p in zip(checkpoint.classes, outcome.probability, strict=True))
        print(f"{outcome.case_id}\t{known[outcome.case_id]['idh_codel_subtype']}\t{shown}")
    if lost:
        raise SystemExit(f"not predicted: {lost}")


def _put(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a sheet unless it already says the same, so that a rerun reruns nothing."""
    candidate = path.with_name(f"{path.name}.new")
    write_table(candidate, list(rows[0]), rows)
    if path.exists() and path.read_bytes() == candidate.read_bytes():
        candidate.unlink()
    else:
        candidate.replace(path)


def _snakemake(folder: Path, config: dict[str, Any]) -> None:
    text = yaml.safe_dump(config, sort_keys=False)
    path = folder / "config.yaml"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
    command += ["--directory", str(folder), "--rerun-incomplete", "--show-failed-logs", "--quiet", "rules"]
    subprocess.run([*command, "--set-threads", "train_model=1"], check=True, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main())
