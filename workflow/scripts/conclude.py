"""End with an error that lists what failed, unless the user allowed it."""

from pipeline.conclude import conclude
from workflow.job import job

with job(snakemake):
    conclude(
        snakemake.input.slides,
        snakemake.input.features,
        snakemake.input.trained,
        snakemake.params.allow_failed,
        snakemake.output.verdict,
    )
