# Sheets, batches, wildcards and input functions. Contains no rule and nothing heavier than the sheets.
import os
import sys

sys.path.insert(0, str(workflow.basedir))

from models.registry import CLINICAL_COLUMNS
from pipeline.contracts import layout
from pipeline.contracts.cohort import batches, read_cases, read_slides
from pipeline.contracts.errors import HistoweaveError
from pipeline.contracts.files import digest_of
from pipeline.contracts.revisions import REVISIONS
from workflow.configuration import checked

from snakemake.exceptions import WorkflowError

RESULTS = "results"

try:
    config = checked(config)
    SLIDES = read_slides(config["inputs"]["slides"]) if config["inputs"]["slides"] else []
    CASES = read_cases(config["inputs"]["cases"])
except HistoweaveError as error:
    raise WorkflowError(str(error)) from None

BATCHES = batches(SLIDES)
CASES_DIGEST = digest_of(sorted(CASES.rows))
HAS_RNA = bool(config["inputs"]["expression"])
TASKS = {task["name"]: task for task in config["tasks"]}
ENCODERS = {encoder["slug"]: encoder for encoder in config["encoders"]} if SLIDES else {}
EXPERIMENTS = {experiment["name"]: experiment for experiment in config["experiments"]}
FOLDS = list(range(config["splits"]["folds"]))
RUNS = [(task, name) for name, x in EXPERIMENTS.items() for task in x["tasks"] or TASKS]


wildcard_constraints:
    batch=r"[A-Za-z0-9._-]+",
    encoder=r"[A-Za-z0-9._-]+",
    task=r"[A-Za-z0-9._-]+",
    experiment=r"[A-Za-z0-9._-]+",


def batch_indexes(stage):
    return [layout.batch_index(RESULTS, stage, batch) for batch in BATCHES]


def sheet_rows(wildcards):
    """The batch's rows of the slide sheet, for the script."""
    return [vars(slide) for slide in BATCHES[wildcards.batch]]


def slide_identities(wildcards):
    """Size and time of every slide file of the batch: a replaced slide reruns its batch, a missing one stops nothing."""
    identities = []
    for slide in BATCHES[wildcards.batch]:
        try:
            stat = os.stat(slide.path)
            identities.append(f"{slide.slide_id} {stat.st_size} {stat.st_mtime_ns}")
        except OSError:
            identities.append(f"{slide.slide_id} missing")
    return identities


def batch_cases(wildcards):
    """The case ids of the batch that the clinical sheet knows."""
    return sorted({s.case_id for s in BATCHES[wildcards.batch]} & CASES.rows.keys())


def needs(experiment, modality):
    return modality in EXPERIMENTS[experiment]["needs"]


def expression_table():
    return layout.expression(RESULTS) if HAS_RNA else []


def stain_target():
    """A file of the user's that colours are matched to."""
    target = config["stain"]["target"]
    return [] if target == "builtin" else [target]


def gene_lists():
    """Files of the user's that gene selection reads."""
    return [path for path in (config["genes"]["tumour"], config["genes"]["tme"]) if path != "builtin"]


def training_inputs(wildcards):
    """What one experiment trains on: only the modalities that its model uses, so that only they rerun it."""
    inputs = {"splits": layout.splits(RESULTS)}
    if needs(wildcards.experiment, "slides"):
        inputs["features"] = layout.features_index(RESULTS, EXPERIMENTS[wildcards.experiment]["encoder"])
    if needs(wildcards.experiment, "genes"):
        inputs["expression"] = layout.expression(RESULTS)
        inputs["genes"] = [layout.genes(RESULTS, wildcards.task, k) for k in FOLDS]
    return inputs


def experiments_of(task):
    return [name for t, name in RUNS if t == task]


def label_values(wildcards):
    """The label columns of one task, so that a changed covariate retrains nothing."""
    task = TASKS[wildcards.task]
    columns = [task[key] for key in ("label", "time", "event") if key in task]
    return digest_of([[case, *(row.get(c, "") for c in columns)] for case, row in sorted(CASES.rows.items())])


def covariate_values(wildcards):
    """The columns of the case sheet that one experiment takes as input: empty but for the clinical model."""
    if not needs(wildcards.experiment, "clinical"):
        return ""
    columns = EXPERIMENTS[wildcards.experiment]["params"].get("columns", CLINICAL_COLUMNS)
    return digest_of([[case, *(row.get(c, "") for c in columns)] for case, row in sorted(CASES.rows.items())])
