"""Train one experiment on every fold of one task, going on where a killed job stopped."""

from pathlib import Path

from models.train import Experiment, Inputs, train_folds
from pipeline.contracts.tasks import Task
from workflow.job import job

with job(snakemake):
    train_folds(
        Experiment(**snakemake.params.experiment),
        Task(**snakemake.params.task),
        Inputs.from_named(snakemake.input, snakemake.params.sheet),
        Path(snakemake.output.index).parent,
        snakemake.output.index,
        threads=snakemake.threads,
    )
