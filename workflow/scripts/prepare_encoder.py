"""Resolve an encoder once, where the network is: download or build its weights and record their digest."""

from pipeline.encoders import EncoderSpec, write_encoder_facts
from workflow.job import job

with job(snakemake):
    write_encoder_facts(EncoderSpec(**snakemake.params.encoder), snakemake.output.facts)
