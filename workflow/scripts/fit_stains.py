"""Fit the stain matrix of every slide of the batch."""

from pipeline.batches import run_batch
from pipeline.contracts.batches import read_batch
from pipeline.contracts.layout import RESULTS
from pipeline.guard import LOOKING, guarded
from pipeline.stain import StainParams, StainStage
from workflow.job import job


def work(watch):
    stage = StainStage(RESULTS, StainParams(**snakemake.params.section))
    upstream = read_batch(snakemake.input.upstream)
    run_batch(watch.stage(stage), upstream, snakemake.output.index, watch.threads(snakemake.threads))


with job(snakemake):
    guarded(work, LOOKING)
