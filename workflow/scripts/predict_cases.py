"""Predict every case with the model of the fold in which it is held out, external ones with that of every fold."""

from pathlib import Path

from models.predict import predict_folds
from models.train import Experiment, Inputs
from pipeline.contracts.tasks import Task
from workflow.job import job

with job(snakemake):
    predict_folds(
        Experiment(**snakemake.params.experiment),
        Task(**snakemake.params.task),
        Inputs.from_named(snakemake.input, snakemake.params.sheet),
        Path(snakemake.input.trained).parent,
        snakemake.output.table,
        slides_out=next(iter(snakemake.output.slides), None),
        external_out=next(iter(snakemake.output.external), None),
    )
