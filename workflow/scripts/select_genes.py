"""Choose and scale genes on each fold's training cases only."""

from pipeline.contracts.tasks import Task, read_labels
from pipeline.genes import GeneParams, select_genes_for_folds
from workflow.job import job

with job(snakemake):
    labels = read_labels(snakemake.params.sheet, Task(**snakemake.params.task))
    select_genes_for_folds(
        snakemake.input.expression,
        snakemake.input.splits,
        labels.cases,
        GeneParams(**snakemake.params.section),
        snakemake.output.genes,
        snakemake.wildcards.task,
        classes=labels.label,
        aliases=next(iter(snakemake.input.aliases), None),
        survival={case: (labels.time[case], labels.event[case]) for case in labels.time},
        patients=labels.patient,
    )
