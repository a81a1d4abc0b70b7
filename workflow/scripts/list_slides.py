"""The page that lists the pages of all slides."""

from pipeline.contracts.layout import RESULTS
from pipeline.report.quality import write_slide_list
from workflow.job import job

with job(snakemake):
    write_slide_list(RESULTS, snakemake.input.batches, snakemake.output.page, snakemake.params.simulated)
