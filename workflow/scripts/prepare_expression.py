"""Read, check and normalise the expression table, case by case."""

from pipeline.contracts.cohort import read_cases
from pipeline.expression import ExpressionParams, prepare_expression
from workflow.job import job

with job(snakemake):
    cases = read_cases(snakemake.params.sheet).rows
    prepare_expression(
        snakemake.params.path,
        snakemake.output.table,
        ExpressionParams(**snakemake.params.section),
        list(cases),
        *snakemake.params.gene_sets,
        cohorts={case: row.get("cohort", "") for case, row in cases.items()},
    )
