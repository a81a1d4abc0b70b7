"""Metrics with intervals for every experiment of one task, and paired differences between them."""

from pathlib import Path

from models.evaluate import EvaluationParams, evaluate_task
from pipeline.contracts.tasks import Task
from workflow.job import job

with job(snakemake):
    evaluate_task(
        Task(**snakemake.params.task),
        {Path(path).stem: path for path in snakemake.input.predictions},
        snakemake.output.metrics,
        snakemake.output.differences,
        EvaluationParams(**snakemake.params.section),
        snakemake.params.sheet,
        {Path(path).stem.removesuffix("_external"): path for path in snakemake.input.external},
    )
