"""Places of the cases on a plane, for the report."""

from pipeline.genes.case_map import write_case_map
from workflow.job import job

with job(snakemake):
    write_case_map(snakemake.input.expression, snakemake.output.places)
