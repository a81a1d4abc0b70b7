"""Fit the stain matrix of every slide of the batch."""

from pipeline.batches import run_batch
from pipeline.contracts.batches import read_batch
from pipeline.contracts.layout import RESULTS
from pipeline.stain import StainParams, StainStage
from workflow.job import job

with job(snakemake):
    stage = StainStage(RESULTS, StainParams(**snakemake.params.section))
    run_batch(stage, read_batch(snakemake.input.upstream), snakemake.output.index, snakemake.threads)
