# Sheets, batches, wildcards and input functions. Contains no rule and nothing heavier than the sheets.
import os
import re
import sys

sys.path.insert(0, str(workflow.basedir))

from models.registry import CLINICAL_COLUMNS
from pipeline.contracts import layout
from pipeline.contracts.layout import RESULTS
from pipeline.contracts.cohort import COHORT, PATIENT, batches, read_cases, read_slides
from pipeline.contracts.encoders import IMPORTED
from pipeline.contracts.errors import HistoweaveError
from pipeline.contracts.expression_tables import table_sources
from pipeline.contracts.files import digest_of
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.slide_files import files_of_slide, is_remote
from pipeline.contracts.slide_types import select_types
from pipeline.contracts.stain_targets import target_kind
from pipeline.contracts.tasks import PRETRAIN, PRETRAINING, Task
from workflow.configuration import check_cohort, checked
from workflow.ledger import check_ledger

from snakemake.exceptions import WorkflowError

try:
    config = checked(config)
    WANTED_TYPES = {key: config["inputs"][key] for key in ("slide_types", "keep_normal")}
    SLIDES = read_slides(config["inputs"]["slides"]) if config["inputs"]["slides"] else []
    SLIDES = select_types(SLIDES, **WANTED_TYPES)
    CASES = read_cases(config["inputs"]["cases"])
    check_cohort(config, SLIDES, CASES)
    check_ledger(config["splits"]["file"], layout.splits(RESULTS))
except HistoweaveError as error:
    raise WorkflowError(str(error)) from None

BATCHES = batches(SLIDES)
ALL_CORES = workflow.resource_settings.cores or 1
CASES_DIGEST = digest_of(sorted(CASES.rows))
TARGET_KIND = target_kind(config["stain"]["target"], [slide.slide_id for slide in SLIDES])
HAS_RNA = bool(config["inputs"]["expression"])
TASKS = {task["name"]: task for task in config["tasks"]}
ALL_TASKS = {**TASKS, PRETRAIN: {"name": PRETRAIN, "kind": PRETRAINING}}
ENCODERS = {encoder["slug"]: encoder for encoder in config["encoders"]} if SLIDES else {}
ADOPTED = [slug for slug, encoder in ENCODERS.items() if encoder["weights"] == IMPORTED]
EMBEDDED = [slug for slug in ENCODERS if slug not in ADOPTED]
READS_SLIDES = bool(EMBEDDED) or not ENCODERS
EXPERIMENTS = {experiment["name"]: experiment for experiment in config["experiments"]}
EXTERNAL = bool(config["splits"]["external"])
FOLDS = list(range(config["splits"]["folds"]))
RUNS = [(task, name) for name, x in EXPERIMENTS.items() for task in x["tasks"] or TASKS]  # pre-training among them
PREDICTED = [(task, name) for task, name in RUNS if task != PRETRAIN]


wildcard_constraints:
    batch=r"[A-Za-z0-9._-]+",
    encoder=r"[A-Za-z0-9._-]+",
    task=r"[A-Za-z0-9._-]+",
    experiment=r"[A-Za-z0-9._-]+",


def one_of(names):
    """Regular expression of a wildcard that takes these values only."""
    return "|".join(map(re.escape, names)) or "(?!)"


def batch_indexes(stage):
    return [layout.batch_index(RESULTS, stage, batch) for batch in BATCHES]


def embedded_indexes():
    """What one embedding job declares: an index per encoder (a name that nobody asks for where there is none)."""
    return [layout.batch_index(RESULTS, f"features/{e}", "{batch}") for e in EMBEDDED or ["none"]]


def sheet_rows(wildcards):
    """The batch's rows of the slide sheet, for the script."""
    return [vars(slide) for slide in BATCHES[wildcards.batch]]


def slide_identities(wildcards):
    """Size and time of all files of the batch's slides: a replaced one reruns the batch, a missing one stops nothing."""
    identities = []
    for slide in BATCHES[wildcards.batch]:
        if is_remote(slide.path):  # planning asks nothing of the network
            identities.append(f"{slide.slide_id} {slide.path}")
            continue
        try:
            stats = [os.stat(path) for path in files_of_slide(slide.path)]
            identities.append(" ".join([slide.slide_id, *(f"{s.st_size} {s.st_mtime_ns}" for s in stats)]))
        except OSError:
            identities.append(f"{slide.slide_id} missing")
    return identities


def annotation_identities(wildcards):
    """Size and time of the batch's files of outlines, so that an edited one reruns the batch; none where none is used."""
    pattern = config["tissue"]["annotations"]
    if pattern is None:
        return []
    paths = [pattern.replace("{slide_id}", slide.slide_id) for slide in BATCHES[wildcards.batch]]
    stats = [os.stat(path) if os.path.isfile(path) else None for path in paths]
    return [f"{s.st_size} {s.st_mtime_ns}" if s else "missing" for s in stats]


def batch_cases(wildcards):
    """The case ids of the batch that the clinical sheet knows."""
    return sorted({s.case_id for s in BATCHES[wildcards.batch]} & CASES.rows.keys())


def listed_features(wildcards):
    """What the list of an encoder's features is made from: other encoders' arrival is none of its business."""
    indexes = batch_indexes(f"features/{wildcards.encoder}")
    if wildcards.encoder in ADOPTED:
        return {"batches": indexes}
    return {
        "batches": [ancient(index) for index in indexes],
        "upstream": batch_indexes("stain"),
        "facts": layout.encoder_facts(RESULTS, wildcards.encoder),
        "target": stain_target(),
    }


def needs(experiment, modality):
    return modality in EXPERIMENTS[experiment]["needs"]


def expression_table():
    return layout.expression(RESULTS) if HAS_RNA else []


def target_fits():
    """The stain fits that the target is made of. Later slides do not change a cohort's median: their time is ignored."""
    if TARGET_KIND == "cohort":
        return [ancient(index) for index in batch_indexes("stain")]
    if TARGET_KIND == "slide":
        batch = next(b for b, slides in BATCHES.items() for s in slides if s.slide_id == config["stain"]["target"])
        return [layout.batch_index(RESULTS, "stain", batch)]
    return []


def target_file():
    return [config["stain"]["target"]] if TARGET_KIND in ("stains", "image", "slide_file") else []


def slide_list():
    """The page that lists the pages of all slides; none where features are imported and no slide is read."""
    return [layout.slide_pages(RESULTS)] if SLIDES and READS_SLIDES else []


def stain_target():
    """The file of the stains that tiles are painted in; none where they are the built-in ones or stay as they are."""
    used = config["stain"]["method"] != "none" and TARGET_KIND != "builtin"
    return [layout.stain_target(RESULTS)] if used else []


def expression_path(wildcards):
    return config["inputs"]["expression"]


def expression_files():
    """The expression tables, of a folder every file."""
    files = []
    for source in table_sources(config["inputs"]["expression"]):
        folder = os.path.isdir(source.path)
        inside = [os.path.join(top, name) for top, _, names in os.walk(source.path) for name in names]
        files += sorted(inside) if folder else [source.path]
    return files


def alias_file():
    """The user's table of gene names."""
    return [config["expression"]["aliases"]] if config["expression"]["aliases"] else []


def gene_sets(wildcards):
    """The tumour and the TME set, each "builtin" or a file."""
    return [config["genes"]["tumour"], config["genes"]["tme"]]


def gene_lists():
    return [path for path in gene_sets(None) if path != "builtin"]


def family_list():
    """The user's gene families."""
    return [path for path in [config["genes"]["families"]] if path not in (None, "builtin")]


def cancer_list():
    """The user's cancer genes, where genes are chosen by elimination."""
    path = config["genes"]["cancer_genes"] if config["genes"]["selection"] == "rfe_svm" else "none"
    return [path] if path not in ("builtin", "none") else []


def sources_of(experiment):
    """Experiments whose models this one takes over, fold by fold."""
    return EXPERIMENTS[experiment]["init_from"] or []


def task_of(experiment, task):
    """The task that an experiment is trained for where another is for `task`: the same, or pre-training."""
    return PRETRAIN if EXPERIMENTS[experiment]["tasks"] == [PRETRAIN] else task


def gene_task(wildcards):
    """Whose genes an experiment reads: its task's, or those of the pre-training that it starts from."""
    tasks = [task_of(source, wildcards.task) for source in sources_of(wildcards.experiment)]
    return PRETRAIN if PRETRAIN in tasks else wildcards.task


def training_inputs(wildcards):
    """What one experiment trains on: what its model reads, and other experiments with what these read to teach it."""
    inputs = prediction_inputs(wildcards)
    sources = sources_of(wildcards.experiment)
    if sources:
        inputs["sources"] = [layout.models_index(RESULTS, task_of(s, wildcards.task), s) for s in sources]
    if any(needs(source, "genes") for source in sources):
        inputs["expression"] = layout.expression(RESULTS)
    return inputs


def prediction_inputs(wildcards):
    """What one experiment's model reads: only the modalities that it uses, so that only they rerun it."""
    inputs = {"splits": layout.splits(RESULTS)}
    if needs(wildcards.experiment, "slides"):
        inputs["features"] = layout.features_index(RESULTS, EXPERIMENTS[wildcards.experiment]["encoder"])
    if needs(wildcards.experiment, "genes"):
        inputs["expression"] = layout.expression(RESULTS)
        inputs["genes"] = [layout.genes(RESULTS, gene_task(wildcards), k) for k in FOLDS]
    return inputs


def experiments_of(task):
    return [name for t, name in RUNS if t == task]


def column_values(columns):
    """Digest of some columns of the clinical sheet: a job that gets it reruns when they change, and only then."""
    return digest_of([[case, *(row.get(c, "") for c in columns)] for case, row in sorted(CASES.rows.items())])


def grouping_values(wildcards):
    """The columns of the case sheet by which evaluation groups cases."""
    return column_values([PATIENT, COHORT] if EXTERNAL else [PATIENT])


def label_values(wildcards):
    """The label columns of one task, so that a changed covariate retrains nothing."""
    return column_values(Task(**ALL_TASKS[wildcards.task]).columns)


def covariate_values(wildcards):
    """The columns of the case sheet that one experiment takes as input: empty but for the clinical model."""
    if not needs(wildcards.experiment, "clinical"):
        return ""
    return column_values(EXPERIMENTS[wildcards.experiment]["params"].get("columns", CLINICAL_COLUMNS))
