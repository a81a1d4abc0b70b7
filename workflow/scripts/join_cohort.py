"""Compare the sheets and the expression table before any compute."""

from pipeline.join import join_cohort
from workflow.job import job

with job(snakemake):
    join_cohort(
        cases=snakemake.input.cases,
        slides=snakemake.input.get("slides"),
        expression=snakemake.params.path,
        expression_params=snakemake.params.expression,
        tasks=snakemake.params.tasks,
        **snakemake.params.slide_types,
        reads_slides=snakemake.params.reads_slides,
        table=snakemake.output.table,
        page=snakemake.output.page,
    )
