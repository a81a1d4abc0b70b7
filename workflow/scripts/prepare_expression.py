"""Read, check and normalise the expression table, case by case."""

from pipeline.contracts.cohort import read_cases
from pipeline.expression import ExpressionParams, prepare_expression
from workflow.job import job

with job(snakemake):
    prepare_expression(
        snakemake.input.table,
        snakemake.output.table,
        ExpressionParams(**snakemake.params.section),
        list(read_cases(snakemake.params.sheet).rows),
    )
