"""Embed the tiles of every slide of the batch at all magnifications."""

from pipeline.batches import run_batch
from pipeline.contracts.batches import read_batch
from pipeline.contracts.layout import RESULTS
from pipeline.embedding import EmbeddingParams, EmbeddingStage
from pipeline.encoders import EncoderSpec
from pipeline.guard import guarded
from pipeline.stain import StainParams
from workflow.job import job


def work(watch):
    stage = EmbeddingStage(
        RESULTS,
        EncoderSpec(**snakemake.params.encoder), snakemake.input.facts,
        StainParams(**snakemake.params.stain),
        EmbeddingParams(**snakemake.params.section),
        snakemake.threads,
    )  # fmt: skip
    run_batch(watch.stage(stage), read_batch(snakemake.input.upstream), snakemake.output.index)


with job(snakemake):
    guarded(work)
