"""Score every case by tumour, microenvironment and functional gene sets, for the report."""

from pipeline.genes import GeneParams
from pipeline.genes.scores import write_gene_set_scores
from workflow.job import job

with job(snakemake):
    write_gene_set_scores(
        snakemake.input.expression,
        snakemake.output.scores,
        snakemake.output.counts,
        GeneParams(**snakemake.params.section),
        aliases=next(iter(snakemake.input.aliases), None),
    )
