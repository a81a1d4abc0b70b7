# histoweave: whole-slide images and transcriptomes, from raw files to evaluated fusion models.
# `snakemake --cores 8 --use-conda` reads config.yaml in the working directory; stages have targets of their own.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/cohort.smk"
include: "workflow/rules/slides.smk"
include: "workflow/rules/molecular.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/report.smk"


localrules:
    all,
    check,
    tissue,
    tiles,
    stains,
    weights,
    features,
    quality,
    expression,
    splits,
    genes,
    trained,
    evaluated,
    report,
    join_cohort,
    fetch_weights,


rule all:
    default_target: True
    input:
        rules.conclude.output.verdict,


rule check:
    input:
        rules.join_cohort.output,
        batch_indexes("check"),


rule tissue:
    input:
        rules.join_cohort.output,
        batch_indexes("tissue"),


rule tiles:
    input:
        rules.join_cohort.output,
        batch_indexes("tiles"),


rule stains:
    input:
        rules.join_cohort.output,
        batch_indexes("stain"),


rule weights:
    input:
        rules.join_cohort.output,
        [layout.encoder_weights(RESULTS, e) for e in EMBEDDED],


rule features:
    input:
        rules.join_cohort.output,
        [layout.features_index(RESULTS, e) for e in ENCODERS],


rule quality:
    input:
        rules.join_cohort.output,
        slide_list(),


rule expression:
    input:
        rules.join_cohort.output,
        expression_table(),


rule splits:
    input:
        rules.join_cohort.output,
        rules.make_splits.output.splits,


rule genes:
    input:
        rules.join_cohort.output,
        [layout.genes(RESULTS, t, k) for t in TASKS for k in FOLDS if HAS_RNA],


rule trained:
    input:
        rules.join_cohort.output,
        [layout.models_index(RESULTS, t, x) for t, x in RUNS],


rule evaluated:
    input:
        rules.join_cohort.output,
        [layout.evaluation(RESULTS, t) for t in TASKS],


rule report:
    input:
        rules.build_report.output.report,
