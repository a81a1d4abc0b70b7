"""Embed the tiles of every slide of the batch with all encoders, at all magnifications."""

from pipeline.contracts.batches import read_batch
from pipeline.contracts.layout import RESULTS
from pipeline.embedding import EmbeddingJob, EmbeddingParams, EmbeddingStage, embed_batch
from pipeline.encoders import EncoderSpec
from pipeline.guard import guarded
from pipeline.stain import StainParams
from workflow.job import job


def work(watch):
    stain, section = StainParams(**snakemake.params.stain), EmbeddingParams(**snakemake.params.section)
    shared = EmbeddingJob(RESULTS, stain, section, snakemake.threads)
    stages = [EmbeddingStage(shared, EncoderSpec(**encoder)) for encoder in snakemake.params.encoders]
    embed_batch(stages, read_batch(snakemake.input.upstream), snakemake.output.indexes, watch)


with job(snakemake):
    guarded(work)
