"""Assign every case to its folds once, through the user's ledger."""

from pipeline.splits import SplitParams, make_splits
from workflow.job import job

with job(snakemake):
    make_splits(
        snakemake.input.cases,
        SplitParams(**snakemake.params.section),
        snakemake.params.tasks,
        out=snakemake.output.splits,
        notes=snakemake.output.notes,
    )
