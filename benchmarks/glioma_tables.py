"""What do the models of genes alone and of clinical columns alone reach on a real glioma cohort?

451 patients of TCGA-GBM and -LGG (RNA z-scores, clinical columns, no slides), five folds by patient, from a generated
``config.yaml`` through the workflow: IDH/1p/19q subtype, grade, the diagnosis of 2021 in four classes by rule and in
three types as published, and survival. All models that need no slide take part, found by the registry. Beside them
stand the age alone, and the IDH status alone where it is not the label itself or a part of it.

One command, ``python -m benchmarks.glioma_tables``; prints a table in Markdown per task. Skips with a reason where the
data are not at hand.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from models.registry import CLINICAL, GENES, MODELS
from pipeline.contracts import layout
from pipeline.contracts.files import read_table, write_table

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "glioma-tcga"
RULE = {"rule": "who2021", "idh": "idh_status", "codel": "codel_1p19q", "cdkn2a": "CDKN2A_cnv", "grade": "grade"}
TASKS: list[dict[str, Any]] = [
    {"name": "idh_codel", "kind": "classification", "label": "idh_codel_subtype"},
    {"name": "grade", "kind": "classification", "label": "grade"},
    {"name": "who2021", "kind": "classification", "label": RULE},
    {"name": "who2021_type", "kind": "classification", "label": "who2021_type"},
    {"name": "survival", "kind": "survival", "time": "survival_months", "event": "event", "time_unit": "months"},
]
TITLES = {
    "idh_codel": "IDH and 1p/19q (3 classes)",
    "grade": "Grade of the older editions (3 classes)",
    "who2021": "Diagnosis of 2021 by the rule (4 classes)",
    "who2021_type": "Type of 2021 as published (3 classes)",
    "survival": "Survival",
}
FREE_OF_IDH = ("grade", "survival")  #: tasks whose label does not consist of the IDH status
NOT_A_BASELINE = {"idh_codel": "the label itself", "who2021": "part of the label", "who2021_type": "part of the label"}
AGE, IDH = "age", "idh"
CLINICAL_COLUMNS = ["age", "is_female"]
SHOWN = {"classification": ("auc", "balanced_accuracy"), "survival": ("c_index",)}
HEADINGS = {"auc": "AUC", "balanced_accuracy": "balanced accuracy", "c_index": "C-index"}


def experiments() -> list[dict[str, Any]]:
    """Baselines of one column first, then every model that reads genes or clinical columns and nothing else."""
    chosen: list[dict[str, Any]] = [
        {"name": AGE, "model": "clinical", "params": {"columns": ["age"]}},
        {"name": IDH, "model": "clinical", "params": {"columns": ["idh_status"]}, "tasks": list(FREE_OF_IDH)},
    ]
    for name, entry in MODELS.items():
        if entry.needs <= {GENES, CLINICAL} and not entry.task_free and not entry.is_probe:
            columns = {"params": {"columns": CLINICAL_COLUMNS}} if CLINICAL in entry.needs else {}
            chosen.append({"name": name, "model": name, **columns})
    return chosen


def write_inputs(folder: Path, selection: str, bootstrap: int) -> None:
    """``cases.tsv`` (clinical columns, copies of CDKN2A, published type) and ``config.yaml``."""
    with gzip.open(DATA / "cnv_mut.csv.gz", "rt", newline="") as handle:
        copies = {row["case_id"]: row["CDKN2A_cnv"] for row in csv.DictReader(handle)}
    published = {row["case_id"]: row["who2021_type"] for row in read_table(DATA / "who2021_labels.csv")}
    rows = [
        {**row, "CDKN2A_cnv": copies.get(row["case_id"]), "who2021_type": published.get(row["case_id"])}
        for row in read_table(DATA / "clinical.csv")
    ]
    write_table(folder / "cases.tsv", list(rows[0]), rows)
    config = {
        "inputs": {"slides": None, "cases": "cases.tsv", "expression": str(DATA / "rna_zscores.csv.gz")},
        "expression": {"unit": "zscore", "clip": 10.0},
        "genes": {"selection": selection, "cancer_genes": "none"},
        "splits": {"folds": 5},
        "tasks": TASKS,
        "experiments": experiments(),
        "evaluation": {"bootstrap": bootstrap},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def run_workflow(folder: Path) -> None:
    """From config.yaml to evaluation, one core."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--cores", "1", "--show-failed-logs", "--quiet", "all", "--", "evaluated"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout[-4000:] + done.stderr[-4000:])


def cpu_seconds() -> float:
    """Spent by processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def shown(row: Mapping[str, str] | None, key: str, sign: str = "") -> str:
    """``0.858 (0.82 to 0.89)``, or a dash."""
    if row is None or not row[key]:
        return "-"
    value, low, high = (float(row[name]) for name in (key, "low", "high"))
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def table(task: Mapping[str, Any], metrics: Sequence[Mapping[str, str]], pairs: Sequence[Mapping[str, str]]) -> str:
    """One task's table: metrics, and the paired difference of the first metric to each baseline."""
    names = SHOWN[task["kind"]]
    value = {(row["experiment"], row["metric"]): row for row in metrics}
    difference = {(row["experiment"], row["other"]): row for row in pairs if row["metric"] == names[0]}
    baselines = [AGE, IDH] if task["name"] in FREE_OF_IDH else [AGE]
    head = [
        "model",
        "cases",
        *(HEADINGS[name] for name in names),
        *(f"{HEADINGS[names[0]]} less {b}" for b in baselines),
    ]
    lines = [head, ["---"] * len(head)]
    for experiment in dict.fromkeys(row["experiment"] for row in metrics):
        first = value[experiment, names[0]]
        cells = [experiment, first["n_cases"], *(shown(value[experiment, name], "value") for name in names)]
        lines.append([*cells, *(_less(difference, experiment, baseline) for baseline in baselines)])
    if task["name"] not in FREE_OF_IDH:
        lines.append([IDH, NOT_A_BASELINE[task["name"]], *["-"] * (len(head) - 2)])
    return "\n".join([f"**{TITLES[task['name']]}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def _less(difference: Mapping[tuple[str, str], Mapping[str, str]], experiment: str, baseline: str) -> str:
    """The difference to a baseline, which stands first in the table of differences: so its sign is turned."""
    row = difference.get((baseline, experiment))
    if row is None or not row["difference"]:
        return "-"
    turned = {"difference": -float(row["difference"]), "low": -float(row["high"]), "high": -float(row["low"])}
    return shown({key: str(number) for key, number in turned.items()}, "difference", "+")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.glioma_tables", description=__doc__.splitlines()[0])
    parser.add_argument("--selection", choices=("all", "rfe_svm"), default="rfe_svm", help="of genes, in each fold")
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="work here, and go on where the last run stopped")
    options = parser.parse_args(arguments)
    if not DATA.is_dir():
        print(f"SKIPPED: {DATA} is not here.")
        return 0
    started, spent = time.monotonic(), cpu_seconds()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        write_inputs(folder, options.selection, options.bootstrap)
        run_workflow(folder)
        for task in TASKS:
            paths = [layout.evaluation(folder / "results", task["name"], part) for part in ("", "differences")]
            print(table(task, *map(read_table, paths)), end="\n\n")
    print(f"genes: {options.selection}; clinical: {' and '.join(CLINICAL_COLUMNS)}; age and idh: that column alone")
    print(f"{time.monotonic() - started:.0f} s, {cpu_seconds() - spent:.0f} s of CPU time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
