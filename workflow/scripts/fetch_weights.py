"""Fetch an encoder's weights once, where the network is, and record their digest."""

from pipeline.encoders import EncoderSpec, fetch_weights
from workflow.job import job

with job(snakemake):
    fetch_weights(EncoderSpec(**snakemake.params.encoder), snakemake.output.facts, snakemake.output.weights)
